"""Structured pruning: which heads, channels, layers and experts of a trained model go, the same in JAX and PyTorch."""
