"""Training on an export's grid against GPTQ afterwards: `python -m tests.quantized_training_table CONFIG`.

For each seed the config is trained twice, in floats and with `training.quantize: w4`, on the same rows from the same
start. Both runs are then quantised to 4 bits by plain rounding and by GPTQ, and the gate of `quantize` measures them on
held-out text. The data of the config must be prepared. Options that follow are overrides of the config.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from stellarbyte_torch.library_words import hear_libraries
from stellarbyte_torch.quantization.settings import Method, QuantizationSettings
from tests.quantization_table import measured

_METHODS: tuple[Method, ...] = ("rtn", "gptq")
_TRAINED = ("in floats", "on the grid")
_BITS = 4


def main() -> None:
    """Print the perplexities of each run, and how far rounding one kind is from GPTQ of the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--group-size", type=int, default=64, metavar="N")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="calibration rows of GPTQ")
    parser.add_argument("--sequence-length", type=int, default=256, metavar="N", help="tokens of each of them")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder to keep the runs in")
    options, overrides = parser.parse_known_args()
    hear_libraries("quantized_training_table")
    print(
        "| seed | trained | perplexity of the floats | rounded | by GPTQ |\n| --- | --- | --- | --- | --- |", flush=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        pairs = [_of_seed(seed, folder, options, overrides) for seed in range(options.seeds)]
    change = statistics.mean(pair["on the grid"]["rtn"] / pair["in floats"]["gptq"] - 1 for pair in pairs)
    print(f"\nTrained on the grid and rounded, against floats by GPTQ: perplexity {change:+.2%} on average.")


def _of_seed(seed: int, folder: Path, options: argparse.Namespace, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Of each way to train: method -> perplexity; prints a row for each."""
    found: dict[str, dict[str, float]] = {}
    for trained in _TRAINED:
        run = folder / f"{trained.replace(' ', '-')}-{seed}"
        grid = [f"--training.quantize=w{_BITS}", f"--training.quantize_group_size={options.group_size}"]
        given = [*overrides, *(grid if trained == "on the grid" else []), f"--seed={seed}", f"--output_dir={run}"]
        command = [sys.executable, "-m", "stellarbyte", "pretrain", options.config, *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found[trained] = {}
        for method in _METHODS:
            settings = QuantizationSettings(
                method=method,
                bits=_BITS,
                group_size=options.group_size,
                samples=options.samples,
                sequence_length=options.sequence_length,
            )
            held = measured(run, settings)["held_out"]
            found[trained] |= {"floats": held["perplexity_before"], method: held["perplexity_after"]}
        cells = (f"{found[trained][name]:.3f}" for name in ("floats", *_METHODS))
        print(f"| {seed} | {trained} | {' | '.join(cells)} |", flush=True)
    return found


if __name__ == "__main__":
    main()
