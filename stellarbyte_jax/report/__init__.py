"""What the report measures of a run: its weights, its speed, what it makes of a text, and a step of its training."""
