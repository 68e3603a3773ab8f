"""Chat data: records become conversations, and a chat template makes tokens of them, each trained on or not."""
