"""Saves the state of a run in checkpoints, and reads it back."""
