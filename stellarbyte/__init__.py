"""The ground that both wings stand on: what JAX's side, PyTorch's and the converter share, and no framework does."""
