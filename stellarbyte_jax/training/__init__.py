"""From rows of tokens to checkpoints."""
