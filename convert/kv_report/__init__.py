"""What pruning a model's key/value cache costs and saves, on the user's own text."""
