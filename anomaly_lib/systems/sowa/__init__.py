"""SOWA / HFWA: window-attention adapters trained on one data set, tested on another."""
