"""The digits in image files."""
