"""ALIGNN and the fusions of its graph with text."""
