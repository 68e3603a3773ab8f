"""The decoder: one file for each part, read from norm to causal_lm."""
