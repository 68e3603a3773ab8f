"""Training: makes checkpoints from rows of tokens."""
