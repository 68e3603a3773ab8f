"""Attention: the layer, and the kernels that each backend runs."""
