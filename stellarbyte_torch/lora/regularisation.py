"""The loss terms that keep LoRA's A and B orthogonal or small."""

from typing import Any

import torch
from peft import PeftModel

from stellarbyte_torch.lora.modules import lora_layers


def regularisation(model: PeftModel) -> torch.Tensor:
    """orthogonal_reg · mean ‖P Pᵀ − I‖ + l2_reg · Σ ‖P‖² over the active adapters' A and Bᵀ: a scalar for the loss.

    The orthogonal term is AdaLoRA's (Zhang et al. 2023, equation 4, in PEFT's scale), a mean over the matrices of an
    adapter; each expert's matrices count by themselves. B starts at 0, where this term has no gradient. The result is 0
    if both coefficients are.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for name in model.active_adapters:
        config = model.peft_config[name]
        orthogonal, l2 = getattr(config, "orthogonal_reg", 0.0), getattr(config, "l2_reg", 0.0)
        if not orthogonal and not l2:
            continue
        factors = [factor.float() for layer in lora_layers(model).values() for factor in _factors(layer, name)]
        if orthogonal:
            distances = torch.cat([_distance_from_orthogonal(factor_ERI) for factor_ERI in factors])
            total = total + orthogonal * distances.mean()
        if l2:
            total = total + l2 * torch.stack([factor.square().sum() for factor in factors]).sum()
    return total


def _factors(layer: Any, adapter: str) -> list[torch.Tensor]:
    """A and Bᵀ of one layer, each [E, R, width]; E is 1 without experts, and width includes a convolution's kernel."""
    if adapter in layer.lora_embedding_A:
        return [layer.lora_embedding_A[adapter][None], layer.lora_embedding_B[adapter].T[None]]
    if adapter not in layer.lora_A:
        return []
    A, B = layer.lora_A[adapter].weight.flatten(1), layer.lora_B[adapter].weight.flatten(1)
    experts = getattr(layer, "num_experts", 1)
    # In PEFT's layout experts are outermost in A's rows and innermost in B's columns.
    return [A.view(experts, -1, A.shape[1]), B.view(B.shape[0], -1, experts).permute(2, 1, 0)]


def _distance_from_orthogonal(factor_ERI: torch.Tensor) -> torch.Tensor:
    """How far each expert's rows are from orthonormal, in Frobenius norm: [E]."""
    gram_ERR = factor_ERI @ factor_ERI.mT
    return torch.linalg.matrix_norm(gram_ERR - torch.eye(gram_ERR.shape[-1], device=gram_ERR.device))
