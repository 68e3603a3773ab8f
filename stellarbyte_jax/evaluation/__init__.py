"""A run's model as an evaluation uses it."""
