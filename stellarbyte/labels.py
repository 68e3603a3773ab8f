"""The label of a token that is not trained on, as PyTorch's cross entropy and Transformers have it."""

IGNORED_LABEL = -100
