"""The built-in demo CLIP: how it is built and what it is trained for."""
