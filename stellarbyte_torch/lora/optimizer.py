"""Builds an optimizer for adapters, with LoRA+'s separate learning rates for A and B."""

from typing import Any

from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer


def lora_optimizer(
    model: PeftModel, optimizer_class: type[Optimizer], *, lr: float, weight_decay: float = 0.0, **kwargs: Any
) -> Optimizer:
    """An optimizer over all trainable parameters; B's rate is loraplus_lr_ratio · lr if the active adapter has a ratio.

    Without a ratio there is one learning rate for everything. Source: LoRA+, Hayou et al. 2024, in PEFT's
    implementation.
    """
    config: Any = model.peft_config[model.active_adapters[0]]
    ratio = getattr(config, "loraplus_lr_ratio", None)
    if ratio is None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return optimizer_class(trainable, lr=lr, weight_decay=weight_decay, **kwargs)  # type: ignore[call-arg]
    return create_loraplus_optimizer(
        model,
        optimizer_class,
        lr=lr,
        loraplus_lr_ratio=ratio,
        loraplus_lr_embedding=config.loraplus_lr_embedding,
        loraplus_weight_decay=weight_decay,
        **kwargs,
    )
