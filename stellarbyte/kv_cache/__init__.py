"""A key/value cache within a budget: which tokens it keeps; one definition for JAX and PyTorch."""
