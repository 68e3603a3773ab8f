"""The worst relative errors between JAX and PyTorch for each value of each switch, as a Markdown table.

Run it as `python -m tests.parity_table`.
"""

import sys
from pathlib import Path


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(Path(__file__).parent))
    from tests import conftest  # noqa: F401, I001 - before JAX, which it tells to compile quickly

    from test_convert.parity import Parity, parity
    from test_convert.switches import SWITCHES, config_of, rows

    found: list[tuple[dict[str, str], Parity]] = []
    for number, row in enumerate(rows(), start=1):
        print(f"\r{number} of {len(rows())} configs", end="", file=sys.stderr, flush=True)
        found.append((row, parity(config_of(row), row["prompt"] == "at once")))
    print(file=sys.stderr)

    def line(name: str, of_these: list[Parity]) -> str:
        columns = ("logits", "gradients", "cached")
        worst = [max(max(getattr(parity, column).values()) for parity in of_these) for column in columns]
        return f"| {name} | {len(of_these)} | " + " | ".join(f"{error:.1e}" for error in worst) + " |"

    print("| switch | configs | worst logits error | worst gradient error | worst cached-decode error |")
    print("| --- | --- | --- | --- | --- |")
    print(line("all", [parity for _, parity in found]))
    for switch, values in SWITCHES.items():
        for value in values:
            print(line(f"{switch}: {value}", [parity for row, parity in found if row[switch] == value]))


if __name__ == "__main__":
    main()
