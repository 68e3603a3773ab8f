"""Lays out a safetensors file as the safetensors library does, so that it can be written tensor by tensor."""

import json
from collections.abc import Iterable, Mapping

from convert.weights import DTYPES, LazyTensor

# The format's words for dtypes, in the order in which the library lays tensors out, so that all are aligned.
WORDS = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "F16": DTYPES["float16"]}

_ALIGNMENT = 8  # of the header's end


def layout(
    tensors: Mapping[str, LazyTensor], keys: Iterable[str], about: Mapping[str, str] | None = None
) -> tuple[bytes, list[str]]:
    """(all that stands before the tensors' bytes, the keys in the order of these) of a file that holds `keys`.

    about: what the file's metadata say beside the format.
    """
    words = {dtype: word for word, dtype in WORDS.items()}
    order = list(WORDS.values())
    ordered = sorted(keys, key=lambda key: (order.index(tensors[key].dtype), key))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(about or {})}}
    end = 0
    for key in ordered:
        tensor = tensors[key]
        begin, end = end, end + tensor.nbytes
        header[key] = {"dtype": words[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, ordered
