"""Makes runs of the Hugging Face folders that a config's init_from and teacher name, before its data is prepared."""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from stellarbyte.config.nodes import Node, read_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.places import is_remote, place


def import_init_from(options: argparse.Namespace) -> None:
    """Puts runs made of the Hugging Face folders in `init_from` and `training.distill.teacher` in their places.

    They become the last overrides. A run is made once, in the output_dir, by a process of its own: so this one's memory
    stays free, and JAX starts as if nothing had been. Its name tells the folder's content. A folder in a bucket and a
    run of several processes are left alone: such a run needs one that `stellarbyte convert from-hf` has made.

    Raises:
        UserError: the config cannot be read.
        SystemExit: a folder cannot be imported; the process has said why.
    """
    root = read_yaml(place(options.config))
    for name, value in parse_overrides(options.overrides):
        root = override(root, name, value) if not name.startswith("model.") else root
    output_dir = _text(root, "output_dir")
    if output_dir is None or _is_distributed(root):
        return
    for field in ("init_from", "training.distill.teacher"):
        source = _text(root, field)
        if source is None or is_remote(source):
            continue
        folder = Path(source)
        if (folder / "checkpoints").is_dir() or not (folder / "config.json").is_file():
            continue
        run_dir = place(output_dir) / f"{field.rpartition('.')[2]}-{_fingerprint(folder)}"
        if not (run_dir / "checkpoints").is_dir():
            words = [sys.executable, "-m", "stellarbyte", "convert", "from-hf", str(folder), str(run_dir)]
            code = subprocess.run(words, check=False).returncode
            if code != 0:
                raise SystemExit(code)
        options.overrides = [*options.overrides, f"--{field}={run_dir}"]


def _text(node: Node | None, name: str) -> str | None:
    """The text in the field of this dotted name; None if there is none."""
    for key in name.split("."):
        fields = node.value if node is not None and isinstance(node.value, dict) else {}
        node = fields.get(key)
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
