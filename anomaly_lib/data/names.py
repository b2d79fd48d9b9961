"""Names of data sets, demo categories and resizings, for options that choose one; importing them loads no torch."""

DATASET_NAMES = ("mvtec", "btad", "demo", "folder", "hdmap", "meta", "visa")
"""The keys of `data.DATASETS`."""

DEMO_CATEGORIES = ("woven", "brushed_metal", "grid", "capsule", "circuit_board")
"""The keys of `data.demo.items.CATEGORIES`."""

RESIZE_MODES = ("shorter", "stretch", "pad")
"""How `ImageTransform` brings an image to its size."""
