"""A page that follows runs while they train: `stellarbyte watch`."""
