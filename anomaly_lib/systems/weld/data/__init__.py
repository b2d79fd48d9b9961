"""Weld runs: video, sound, sensors and photographs; real layouts and synthetic welds."""
