"""Continues prompts with a trained model."""
