"""Fine-tuning of any causal language model by Transformers' Trainer: LoRA, some layers, or all weights."""
