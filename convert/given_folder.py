"""Refuses a folder whose files lead out of it, or that holds its weights only in a pickle."""

import os
import re
from pathlib import Path

from stellarbyte.errors import UserError

# Under these names other libraries save weights by pickling them.
_PICKLE = re.compile(r"(pytorch_model|model|consolidated)\b.*\.(bin|pt|pth|pkl|ckpt)")


def check_links(folder: Path) -> None:
    """Refuses links to files elsewhere: a stranger's folder could make a copy of any file of this machine.

    In Hugging Face's own cache, all files are links to ../../blobs, and these are fine.

    Raises:
        UserError: there is such a link, or the folder cannot be read.
    """
    home = Path(os.path.realpath(folder))
    inside = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    try:
        links = [path for path in sorted(folder.iterdir()) if path.is_symlink()] if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error
    for link in links:
        target = Path(os.path.realpath(link))
        if target.parent not in inside:
            raise UserError(
                f"{link} is a link to {target}, which is not in the folder: if that is the file you mean, put a copy "
                "of it in the link's place"
            )


def without_weights(folder: Path, names: str) -> UserError:
    """The error for a folder that holds none of the files of weights called `names`."""
    pickles = sorted(path.name for path in folder.iterdir() if _PICKLE.fullmatch(path.name)) if folder.is_dir() else []
    if not pickles:
        return UserError(f"{folder} holds neither {names}: save the model there with save_pretrained")
    load = f"import stellarbyte_torch, transformers as t; t.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    return UserError(
        f"{folder} holds its weights in {pickles[0]}, a pickle, which can run any program when it is read and is never "
        "opened here: where that can do no harm, such as in a container without your files, run "
        f'python -c "{load}.save_pretrained({str(folder) + "-safe"!r})", and convert the folder that it writes, with '
        "the tokenizer's files beside the weights"
    )
