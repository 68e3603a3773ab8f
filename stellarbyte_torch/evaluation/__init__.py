"""A folder's model as an evaluation uses it."""
