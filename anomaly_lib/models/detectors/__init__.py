"""The five anomaly detectors and their anomalib key names."""
