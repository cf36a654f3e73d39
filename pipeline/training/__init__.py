"""From a recipe to trained networks in folders, and their predictions."""
