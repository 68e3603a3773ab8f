"""Makes a run of the Hugging Face folder that a config's init_from names, before its data is prepared or it trains."""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from stellarbyte.config.nodes import Node, read_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.places import is_remote, place


def import_init_from(options: argparse.Namespace) -> None:
    """Puts a run that is made of the Hugging Face folder in `init_from` in its place, as the last override.

    The run is made once, in the output_dir, by a process of its own: so this one's memory stays free, and JAX starts as
    if nothing had been. Its name tells the folder's content. A folder in a bucket and a run of several processes are
    left alone: such a run needs one that `stellarbyte convert from-hf` has made.

    Raises:
        UserError: the config cannot be read.
        SystemExit: the folder cannot be imported; the process has said why.
    """
    root = read_yaml(place(options.config))
    for name, value in parse_overrides(options.overrides):
        root = override(root, name, value) if not name.startswith("model.") else root
    source, output_dir = (_text(root, name) for name in ("init_from", "output_dir"))
    if source is None or output_dir is None or is_remote(source) or _is_distributed(root):
        return
    folder = Path(source)
    if (folder / "checkpoints").is_dir() or not (folder / "config.json").is_file():
        return
    run_dir = place(output_dir) / f"init_from-{_fingerprint(folder)}"
    if not (run_dir / "checkpoints").is_dir():
        words = [sys.executable, "-m", "stellarbyte", "convert", "from-hf", str(folder), str(run_dir)]
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            raise SystemExit(code)
    options.overrides = [*options.overrides, f"--init_from={run_dir}"]


def _text(root: Node, name: str) -> str | None:
    node = root.value.get(name)
    return node.value if node is not None and isinstance(node.value, str) else None


def _is_distributed(root: Node) -> bool:
    section = root.value.get("distributed")
    fields = section.value if section is not None and isinstance(section.value, dict) else {}
    return any(fields[name].value for name in ("coordinator_address", "detect") if name in fields)


def _fingerprint(folder: Path) -> str:
    """A word that changes with the names, sizes and times of the model's files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    said = [f"{path.name} {(status := path.stat()).st_size} {status.st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
