"""Looking at networks: why one does not learn."""
