"""A server and a page for trained image detectors: ``python -m anomaly_lib serve --checkpoint FILE``."""
