"""Chat data: from records to conversations, and by a chat template to tokens of which each is trained on or not."""
