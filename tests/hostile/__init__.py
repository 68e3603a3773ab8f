"""Hostile and absurd input for every command: the cases of `tests.hostile_table`, and how each is run and judged."""
