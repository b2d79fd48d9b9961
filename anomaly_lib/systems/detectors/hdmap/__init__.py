"""Multi-domain HDMAP: one source domain, its targets, conditions and repeats."""
