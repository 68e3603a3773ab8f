"""The checks of a certificate that find each corruption of an export, as a Markdown table.

Run it as `python -m tests.mutation_table`.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(Path(__file__).parent))
    from tests import conftest  # noqa: F401, I001 - before JAX, which it tells to compile quickly

    from convert.certificate import verify
    from stellarbyte_jax.data.tokenizer_training import train_tokenizer
    from test_convert.mutations import FILES, MUTATIONS, make_run

    print("| corruption | files: checks that find it | models: checks that find it | the first sentence |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = "the star that was a byte, and the byte that was a star: def star(byte): return byte * 2\n"
        tokenizer = train_tokenizer([text] * 20, 300, folder / "tokenizer", report=lambda _: None)
        sound = {tied: make_run(folder / str(tied), tokenizer, tied=tied) for tied in (False, True)}
        for number, mutation in enumerate(MUTATIONS):
            run, export = sound[mutation.tied]
            corrupted = shutil.copytree(export, folder / str(number))
            mutation.corrupt(corrupted)
            print(_line(mutation.name, verify(run, corrupted), FILES), flush=True)


def _line(name: str, certificate: dict[str, Any], files: tuple[str, ...]) -> str:
    failed = [check["check"] for check in certificate["checks"] if check["result"] == "not ok"]
    of_files = ", ".join(check for check in failed if check in files) or "none"
    skipped = any(check["check"] == "behaviour" for check in certificate["checks"])
    of_models = ", ".join(check for check in failed if check not in files) or ("not run" if skipped else "none")
    sentence = certificate["differences"][0] if certificate["differences"] else "none: it was not found"
    return f"| {name} | {of_files} | {of_models} | {sentence.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    main()
