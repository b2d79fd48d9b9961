"""SOWA's adapters, prompts, scores and the released checkpoint's key names."""
