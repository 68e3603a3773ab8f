"""The bridge: it carries StellarByte checkpoints between JAX and Hugging Face, bit for bit."""
