"""Statistics and pictures of the training data."""
