"""A model of Transformers that looks things up in a memory before it answers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stellarbyte.chat.session import Answer
from stellarbyte.errors import UserError, shown
from stellarbyte.files import sha256_of_json
from stellarbyte.memory.embedders import ModelEmbedder
from stellarbyte.memory.judges import ModelJudge
from stellarbyte.memory.memory import Memory
from stellarbyte.memory.recall import Recall
from stellarbyte.sampling import Sampling
from stellarbyte_torch.chat.session import TorchChatSession
from stellarbyte_torch.memory.reader import weights_hash
from stellarbyte_torch.model_folder import load_tokenizer

_ROLES = ("system", "user", "assistant")


class MemoryModel:
    """Answers conversations with what a memory has on their last message.

    What is recalled stands in the prompt as data between marks, and is not part of the conversation: see
    docs/memory.md. As for a chat, answers end where the chat template ends a turn.

    Args:
        model: any causal language model of Transformers, in eval mode. Its generation_config is emptied.
        memory: an open store; or a file or URL, which is opened with the model itself as embedder, and as judge if it
            writes. `close` closes that one.
        tokenizer: the model's; by default the one in the folder that the model was loaded from.
        writes: whether the user's last message goes through the memory's gate after the answer.
        memory_tokens: the most tokens of a prompt that are recalled, and never more than a quarter of the context.
        memory_floor: the least score of what is recalled, from 0 to 1; by default the store's own.
        sampling: how answers are drawn; greedily by default.
        max_new_tokens: the most tokens of an answer.
        seed: of the draws.
        stop: strings before the first of which an answer ends.
        chat_template: Jinja; the tokenizer's own by default.

    Raises:
        UserError: there is no tokenizer or chat template, the store cannot be opened or has vectors of another
            embedder, or a number is out of range.
    """

    def __init__(
        self,
        model: Any,
        memory: Memory | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        writes: bool = False,
        memory_tokens: int = 512,
        memory_floor: float | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
        stop: Sequence[str] = (),
        chat_template: str | None = None,
    ) -> None:
        folder = _folder_of(model)
        if tokenizer is None:
            if folder is None:
                raise UserError("the model was loaded from no folder of this machine: give its tokenizer, too")
            tokenizer = load_tokenizer(folder)
        self._session = TorchChatSession(model, tokenizer, sampling, max_new_tokens, seed, stop, chat_template)
        self._opened: Memory | None = None
        if not isinstance(memory, Memory):
            name, weights = ("model", _hash_of(model)) if folder is None else (folder.name, weights_hash(folder))
            reader = self._session.reader(name, weights)
            judge = ModelJudge(reader) if writes else None
            memory = self._opened = Memory(memory, embedder=ModelEmbedder(reader), judge=judge)
        self.memory = memory
        try:
            self._session.recall = Recall(memory, writes, memory_tokens, memory_floor)
        except UserError:
            self.close()
            raise

    def generate(
        self, messages: str | Sequence[Mapping[str, str]], on_text: Callable[[str], Any] | None = None
    ) -> Answer:
        """The answer to a conversation, with what was recalled for it and what the gate decided.

        Args:
            messages: what the user says; or turns with "role" and "content": a system turn or none, then the user's and
                the assistant's, of which the user's is the last.
            on_text: called with each piece of the answer.

        Raises:
            UserError: it is no such conversation, it does not fit the context or the chat template, or the store cannot
                be read or written.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(map(dict, messages))
        for turn in turns:
            if turn.get("role") not in _ROLES or not isinstance(turn.get("content"), str):
                raise UserError(
                    f"messages has {shown(turn.get('role'))} and {shown(turn.get('content'))}, expected turns "
                    f"with a role of {', '.join(_ROLES)} and a text as content"
                )
        system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
        if not turns or turns[-1]["role"] != "user" or any(turn["role"] == "system" for turn in turns):
            raise UserError("messages must end with the user's, and have a system turn at the beginning or none")
        self._session.system, self._session.messages = system, turns[:-1]
        return self._session.answer(turns[-1]["content"], on_text=on_text)

    def close(self) -> None:
        """Closes the store, if this object has opened it."""
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> "MemoryModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folder_of(model: Any) -> Path | None:
    """The folder of this machine that a model was loaded from, if it was."""
    name = getattr(model.config, "_name_or_path", "") or ""
    with suppress(OSError, ValueError):
        if name and (Path(name) / "config.json").is_file():
            return Path(name).resolve()
    return None


def _hash_of(model: Any) -> str:
    """A hash of a model's parameters as they are in memory."""
    sums = {}
    for name, parameter in model.named_parameters():
        bits = parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
        sums[name] = hashlib.sha256(bits).hexdigest()
    return sha256_of_json(sums)
