"""Several recipes, each trained with several seeds, in a table and in pictures."""
