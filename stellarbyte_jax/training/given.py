"""The tokenizer and the token shards that a run is given, checked against its config."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import jax

from stellarbyte.evaluation.choices import Task, read_tasks
from stellarbyte.places import place
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.agreement import check_made_with, check_tokenizer_fits
from stellarbyte_jax.data.chat_template import files_with_template
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.training.evaluation import byte_lengths


class Given(NamedTuple):
    """What a run reads and never changes.

    tokenizer_files: the files of the tokenizer that its checkpoints carry, with the chat template if there is one.
    warning: what the user is told about that template. bytes_a_token_V: int32 [V], see byte_lengths.
    tasks: those of training.eval_tasks.
    """

    tokenizer: Tokenizer
    manifest: Manifest
    data: DataIdentity
    tokenizer_files: Mapping[str, str]
    warning: str | None
    bytes_a_token_V: jax.Array
    tasks: Sequence[Task]

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Reads them.

        Raises:
            UserError: one is missing or damaged, or they do not fit each other or the config.
        """
        tokenizer, manifest = Tokenizer.load(config.data.tokenizer), Manifest.load(place(config.data.shards))
        check_tokenizer_fits(config.model, tokenizer)
        check_made_with(config.data, manifest.recipe, tokenizer)
        chat = manifest.recipe.chat
        template = None if chat is None else chat.chat_template_sha256
        files, warning = files_with_template(tokenizer, config.data, template)
        lengths_V = byte_lengths(tokenizer, config.model.vocab_size)
        tasks = read_tasks(config.training.eval_tasks)
        return cls(tokenizer, manifest, DataIdentity.of(manifest), files, warning, lengths_V, tasks)
