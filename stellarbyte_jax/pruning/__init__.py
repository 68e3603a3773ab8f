"""The way from a run to a smaller run."""
