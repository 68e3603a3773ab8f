"""The names of a decoder layer's tensors on disk, where those of a family differ from those of its class."""

# Mixtral's files have names of their own; each of its experts, as in all families here, has three matrices there.
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def on_disk(model_type: str, name: str) -> str:
    """The name in the folder of a tensor or a linear layer of a decoder layer, both without "model.layers.N."."""
    if model_type != "mixtral" or not name.startswith("mlp."):
        return name
    words = name.replace("mlp.", "block_sparse_moe.", 1).split(".")
    return ".".join(_MIXTRAL.get(word, word) for word in words)


def expert_parts(name: str, experts: int) -> list[list[str]]:
    """The names of the experts' matrices of which a stacked tensor of a decoder layer is made; [] if it is no such one.

    Of "mlp.experts.gate_up_proj" an expert has two, one above the other.
    """
    room, _, last = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last, ())
    if not room.endswith("experts") or not parts:
        return []
    return [[f"{room}.{number}.{part}.weight" for part in parts] for number in range(experts)]
