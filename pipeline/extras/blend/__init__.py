"""The mean of several recipes' predictions."""
