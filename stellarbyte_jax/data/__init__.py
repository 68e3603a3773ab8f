"""Turns text on disk into rows of tokens."""
