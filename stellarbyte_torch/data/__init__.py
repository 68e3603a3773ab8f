"""Chat data for a Trainer: turns records into samples of tokens, each with a mask of the tokens that are trained on."""
