"""Structured pruning of a Hugging Face folder: what JAX does to a run, by the same scores and the same choice."""
