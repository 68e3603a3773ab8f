"""What quantising costs under each switch of architecture: `python -m tests.quantization_switches_table`.

For each switch a small model is trained on the standard library's source, and its logits on held-out text are compared
with those of its quantised folders. Plain rounding's error is printed as it is, and that of another method as a
multiple of it. --only WORD: switches whose name holds it.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from stellarbyte_torch.library_words import hear_libraries


def main() -> None:
    """Print the table; the last row has the largest multiples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from test_torch.test_quantization.switch_costs import SWITCHES, WAYS, cost, read_text, train

    hear_libraries("quantization_switches_table")
    torch.set_num_threads(1)  # the models are too small for more
    text = read_text()
    print(f"| | {' | '.join(WAYS)} |\n|{' --- |' * (len(WAYS) + 1)}")
    ratios: dict[str, list[float]] = {}
    for switch, fields in SWITCHES.items():
        if options.only not in switch:
            continue
        with tempfile.TemporaryDirectory() as place:
            model = Path(place) / "model"
            train(fields, text, model)
            costs = {name: cost(model, text, name, Path(place) / name) for name in WAYS}
        cells = []
        for name, (_, _, plain) in WAYS.items():
            if name == plain:
                cells.append(f"{costs[name]:.2%}")
            else:
                ratios.setdefault(name, []).append(costs[name] / costs[plain])
                cells.append(f"{ratios[name][-1]:.2f}")
        print(f"| {switch} | {' | '.join(cells)} |", flush=True)
    for word, of in (("median", statistics.median), ("largest", max)):
        print(f"| {word} | {' | '.join(f'{of(ratios[name]):.2f}' if name in ratios else '' for name in WAYS)} |")


if __name__ == "__main__":
    main()
