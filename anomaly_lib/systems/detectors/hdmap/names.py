"""Names of HDMAP's domains and of the ways to read them, for options that choose one; importing them loads no torch."""

DOMAINS = ("domain_A", "domain_B", "domain_C", "domain_D")
RESIZE_METHODS = ("resize", "resize_bilinear", "resize_aspect_padding", "black_padding", "noise_padding")
VALIDATION = ("source_test", "held_out")
