"""HDMAP files of both generations, the .mat converter and synthetic maps."""
