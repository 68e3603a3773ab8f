"""Chat data for a Trainer: records become samples of tokens with the mask of what is trained on."""
