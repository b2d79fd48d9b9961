"""Crystals: structure files, graphs, one memory-mapped file, texts, generated crystals."""
