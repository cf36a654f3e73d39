"""Probabilities and labels in, numbers out."""
