"""Images: where they come from, their statistics, their treatment, and batches of them."""
