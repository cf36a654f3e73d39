"""Recipes: the settings, their loading and the rules for them, and the built-in recipes."""
