"""Captioned pictures, drawn by other code than the demo data, that the demo backbone is trained on."""
