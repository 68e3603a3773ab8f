"""From text on disk to rows of tokens."""
