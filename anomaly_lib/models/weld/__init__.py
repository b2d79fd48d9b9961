"""The weld systems' networks."""
