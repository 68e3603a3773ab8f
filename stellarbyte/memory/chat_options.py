"""The options of `stellarbyte chat` that give it a memory."""

import argparse
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.memory.options import memory_place

NONE = "none"
"""The embedder of a chat that looks things up by words alone."""

MOST_TOKENS = 512
"""The most tokens of a prompt that are recalled, unless the user says otherwise."""

# The options that only mean something beside --memory, with the value that says that the user has not set them.
_WITH_MEMORY: dict[str, Any] = {
    "memory_write": False,
    "memory_user": None,
    "memory_tokens": None,
    "memory_floor": None,
    "memory_embedder": None,
}


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        type=memory_place,
        metavar="FILE",
        help="recall from this store what a message has to do with; or postgresql://HOST/DATABASE",
    )
    group.add_argument(
        "--memory-write", action="store_true", help="let what you say into the store, where its gate finds it worth it"
    )
    group.add_argument(
        "--memory-user", metavar="NAME", help="whose memories these are (default: nobody's in particular)"
    )
    group.add_argument(
        "--memory-tokens",
        type=int,
        metavar="N",
        help=f"the most tokens that a prompt recalls (default {MOST_TOKENS}; never above a quarter of the context)",
    )
    group.add_argument(
        "--memory-floor",
        type=float,
        metavar="SCORE",
        help="recall nothing that scores less, from 0 to 1 (default: the store's)",
    )
    group.add_argument(
        "--memory-embedder",
        metavar="FOLDER",
        help=f"what makes the vectors: a run, a model, or a folder of sentence-transformers or model2vec, or {NONE} to "
        "look up by words alone (default: the model that talks)",
    )


def check_memory_options(options: argparse.Namespace) -> None:
    """Raises UserError for an option that needs --memory, where that is not given."""
    for name, unset in _WITH_MEMORY.items():
        if options.memory is None and getattr(options, name) != unset:
            raise UserError(f"--{name.replace('_', '-')} is for a chat with a memory: give --memory FILE, too")
