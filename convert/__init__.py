"""The bridge: StellarByte checkpoints between JAX and Hugging Face, bit for bit."""
