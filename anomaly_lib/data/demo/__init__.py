"""The built-in demo data set: procedural surfaces and objects with exact defect masks."""
