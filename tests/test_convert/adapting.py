"""Adapters beside tiny models, in JAX and in stock PEFT."""

from typing import Any

import jax
import numpy as np
import peft
import torch
from flax import nnx

from convert import adapter_config, adapters, weights
from convert.weights import Params
from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.config import ByteConfig, LoRAConfig
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.state import abstract_model, init_adapters
from test_convert.jax_side import Batch
from test_convert.torch_side import TorchModel


def drawn_adapters(config: ByteConfig, lora: LoRAConfig, seed: int = 0) -> Params:
    """Adapters that say something: no zeros but in the layers that have none, and for heads that are gone."""
    # With twice this two of the tests' models become so steep that float32 is off by 4e-5 in their logits and 5e-4 in
    # their gradients, in JAX and in torch alike: they were equal in the order that one release sums in, by chance.
    spread = 0.2
    generator = np.random.default_rng(seed)
    fresh = dict(weights.flatten(jax.eval_shape(lambda: init_adapters(config, lora, seed))))
    layers = lora.layer_numbers(config.num_hidden_layers)
    drawn = {}
    for path, start in fresh.items():
        drawn[path] = np.zeros(start.shape, np.float32)
        drawn[path][layers] = generator.normal(0.0, spread, drawn[path][layers].shape)
    for module, kernels in adapters._linears(config).items():
        for layer, kernel in enumerate(kernels if lora.adapts(module) else ()):
            A_DR, B_RF = (drawn[(*kernel.path[:-1], leaf)][layer] for leaf in ("lora_A", "lora_B"))
            for features, kept in ((A_DR, kernel.kept[0]), (B_RF.T, kernel.kept[1])):
                gone = np.ones(len(features), bool)
                gone[kept] = False
                features[gone] = 0
    return weights.unflatten(drawn)


def jax_logits_and_gradients(
    config: ByteConfig, lora: LoRAConfig, base: Params, batch: Batch, *adapters: Params
) -> list[tuple[np.ndarray, Params]]:
    """Logits [B, T, V], and the gradients of the mean loss in A and B; by one program with each of the adapters."""
    graphdef, _ = abstract_model(config, lora=lora)

    def loss(adapters: Params, base: Params) -> Any:
        model = nnx.merge(graphdef, join(base, adapters))
        hidden = model.model(batch["input_ids"], batch["position_ids"], batch["segment_ids"]).hidden
        sums = token_loss(hidden, model.head[0], batch["labels"], model.head[1])
        return sums.loss / sums.tokens, model.logits(hidden)

    run = jax.jit(jax.grad(loss, has_aux=True))
    results = [run(these, base) for these in adapters]
    return [(np.asarray(logits), jax.tree.map(np.asarray, gradients)) for gradients, logits in results]


def peft_model(config: ByteConfig, base: Params, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    """Stock PEFT's model of the exported base with these adapters, all of which must find their place."""
    model = peft.get_peft_model(TorchModel(config, base).model, peft.LoraConfig(**fields | {"inference_mode": False}))
    named = {key: torch.from_numpy(tensor.copy()) for key, tensor in tensors.items()}
    assert peft.get_peft_model_state_dict(model).keys() == named.keys()
    result = peft.set_peft_model_state_dict(model, named)
    assert not result.unexpected_keys
    return model.eval()


def torch_logits_and_gradients(model: Any, batch: Batch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As in JAX; the gradients by PEFT's keys."""
    labels = np.concatenate([np.full_like(batch["labels"][:, :1], -100), batch["labels"][:, :-1]], axis=1)
    output = model(
        input_ids=torch.from_numpy(batch["input_ids"]).long(),
        position_ids=torch.from_numpy(batch["position_ids"]).long(),
        labels=torch.from_numpy(labels).long(),
        use_cache=False,
    )
    model.zero_grad()
    output.loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name.replace(".default", ""): parameter.grad.numpy().copy() for name, parameter in trained.items()}
    return output.logits.detach().numpy(), gradients


def peft_fields(config: ByteConfig, lora: LoRAConfig) -> dict[str, Any]:
    modules = [module for module in adapters._linears(config) if lora.adapts(module)]
    return adapter_config.to_peft(lora, modules, config.num_hidden_layers, None)
