"""Training and evaluation: recipes, the loop over batches, and whole runs."""
