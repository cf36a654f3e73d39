"""The pictures: PNG bytes from arrays, one style for all, the same bytes for the same numbers."""
