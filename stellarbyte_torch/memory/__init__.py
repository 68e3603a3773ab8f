"""Memories for models of Transformers: what makes vectors and losses of texts, and a model that looks things up."""
