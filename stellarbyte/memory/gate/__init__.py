"""Decides whether a text is written to a memory; each rule is a file."""
