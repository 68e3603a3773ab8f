"""What looking at weights costs, and how exact its ranks are: `python -m tests.weights_table`.

Ranks of matrices whose singular values are chosen, by the estimate and exactly; and the time and the peak memory of a
folder in bfloat16 with the matrices of one layer of a 7 B Llama and its embeddings, one matrix after the other.
"""

import math
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from stellarbyte.host_memory import peak_resident_bytes
from stellarbyte.report.spectrum import effective_rank
from stellarbyte.report.stored_arrays import folder_arrays
from stellarbyte.report.weights import look

ROWS, SIDE = 3000, 2048
SPECTRA = {
    "normally distributed": None,
    "power law, exponent -0.8": np.arange(1.0, SIDE + 1) ** -0.8,
    "power law, exponent -1.5": np.arange(1.0, SIDE + 1) ** -1.5,
    "exponential, 0.999^i": 0.999 ** np.arange(SIDE),
    "exponential, 0.99^i": 0.99 ** np.arange(SIDE),
    "rank 64": np.r_[np.ones(64), np.zeros(SIDE - 64)],
    "rank 12 and noise a 300th of it": np.r_[np.full(12, 300.0), np.linspace(0.5, 1.5, SIDE - 12)],
}
LAYER = {
    "model.embed_tokens": (32000, 4096),
    **{f"model.layers.0.self_attn.{name}_proj": (4096, 4096) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj": (11008, 4096) for name in ("gate", "up")},
    "model.layers.0.mlp.down_proj": (4096, 11008),
}


def ranks() -> None:
    """Prints estimates beside exact ranks."""
    draws = np.random.default_rng(0)
    left, _ = np.linalg.qr(draws.normal(size=(ROWS, SIDE)))
    right, _ = np.linalg.qr(draws.normal(size=(SIDE, SIDE)))
    print(f"| {ROWS} x {SIDE} | exact | estimate | off by | exact, s | estimate, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in SPECTRA.items():
        matrix = draws.normal(size=(ROWS, SIDE)) if values is None else (left * values) @ right
        matrix = matrix.astype(np.float32)
        start = time.perf_counter()
        exact, _ = effective_rank(matrix, exact_side=SIDE)
        middle = time.perf_counter()
        estimate, _ = effective_rank(matrix)
        end = time.perf_counter()
        off = f"{math.expm1(math.log(estimate / exact)):+.1%}"
        print(f"| {name} | {exact:.1f} | {estimate:.1f} | {off} | {middle - start:.1f} | {end - middle:.1f} |")


def folder() -> None:
    """Prints the time and the peak memory of a folder's matrices."""
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as path:
        for name, shape in LAYER.items():
            values = (0.02 * draws.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)
            save_file({f"{name}.weight": values}, Path(path) / f"{name}.safetensors")
        index = ", ".join(f'"{name}.weight": "{name}.safetensors"' for name in LAYER)
        (Path(path) / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{index}}}}}')
        del values
        before, start = peak_resident_bytes() or 0, time.perf_counter()
        found = look(folder_arrays(Path(path)), {}, lambda _: 0.02)
        seconds, peak = time.perf_counter() - start, peak_resident_bytes() or 0
        numbers = sum(math.prod(shape) for shape in LAYER.values())
        largest = 4 * max(math.prod(shape) for shape in LAYER.values())
        print(
            f"\n{len(found)} matrices, {numbers / 1e6:.0f} M numbers: {seconds:.1f} s, peak {peak >> 20} MiB "
            f"({before >> 20} before); the largest in float32 has {largest >> 20} MiB"
        )


if __name__ == "__main__":
    ranks()
    folder()
