"""What the report measures of a Hugging Face folder: its speed, and what it makes of a text."""
