"""What a run reads, as frozen dataclasses that refuse contradictions when they are built."""

import string
from dataclasses import dataclass
from typing import Literal

from stellarbyte.chat.formats import RecordFormat
from stellarbyte.files import check_path
from stellarbyte.places import local
from stellarbyte_jax.bounds import MOST_TOKENS_PER_SHARD, check_number, check_whole, require


@dataclass(frozen=True)
class SourceConfig:
    """One source of text or conversations."""

    path: str
    """A file, a folder that is searched whole, or a glob. Files .jsonl .ndjson .json .csv .tsv .parquet hold records,
    and .txt .md .py one text each; any of them may end in .gz .zst .xz or .bz2.
    """

    fields: tuple[str, ...] = None  # type: ignore[assignment]  # never None once it is made
    """The fields of a record that make its text. By default they are those that `template` names, or `text` without a
    template.
    """

    template: str | None = None
    r"""How the fields become one text, such as "{title}\n{text}"; \n is a line end, \t a tab and \\ a backslash.
    Without a template the fields are joined by blank lines.
    """

    format: RecordFormat = "auto"
    """The kind of a chat record, with data.kind chat: messages; prompt_completion (prompt and completion); alpaca
    (instruction, output and perhaps input); or text, plain text. auto tells the kind of each record from the fields
    that it has.
    """

    weight: float | None = None
    """The weight of this source among all, such as 0.3 beside 0.7: its share of the tokens that are trained on. It may
    be set or changed without preparing again. By default sources are mixed as large as they are; either all or none
    have a weight.
    """

    def __post_init__(self) -> None:
        if self.weight is not None:
            check_number("weight", self.weight, above=0)
        if self.fields is None:
            object.__setattr__(self, "fields", _template_fields(self.template or "") or ("text",))
        require(bool(self.fields), "fields", list(self.fields), "must name at least one field of the records")


def _template_fields(template: str) -> tuple[str, ...]:
    """The fields that a template names; none of one that cannot be read, which documents.RecordText refuses."""
    try:
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))
    except ValueError:
        return ()


@dataclass(frozen=True)
class DataConfig:
    """What the model reads: sources, the tokenizer's folder, the folder of the token shards made of both."""

    sources: tuple[SourceConfig, ...]
    """The text to train on: one or more sources, read in this order."""

    tokenizer: str
    """The folder of the tokenizer, as `stellarbyte tokenizer train` writes it."""

    shards: str
    """The folder of the token shards, which `stellarbyte prepare` makes of the sources and the tokenizer."""

    sequence_length: int = 1024
    """Number of tokens in a row, the unit of a batch; at most model.max_position_embeddings."""

    validation_fraction: float = 0.01
    """Share of the documents that is set apart for validation, from 0 to less than 1, by a hash of each document's
    text. If there are few documents, passages inside them are set apart instead.
    """

    on_bad_record: Literal["fail", "skip"] = "fail"
    """What happens at a record that cannot be used: fail ends the command, and skip leaves the record out and counts
    it.
    """

    tokens_per_shard: int = 64 * 1024 * 1024
    """Number of tokens in one shard file; the last file of a split holds fewer."""

    kind: Literal["text", "chat"] = "text"
    """What the sources hold: text is one stream of documents, cut into rows; chat is conversations, of which each row
    holds whole samples.
    """

    chat_template: str | None = None
    """With kind chat, a Jinja file with the chat template, or "stellarbyte" for the one that `stellarbyte tokenizer
    train` writes. The default is the tokenizer's own.
    """

    loss_on: Literal["assistant", "all"] = "assistant"
    """What is trained on, with kind chat: assistant is the assistant's turns alone, and all is every token. Plain text
    is trained on whole in both cases.
    """

    on_too_long: Literal["truncate", "drop", "split"] = "truncate"
    """What happens, with kind chat, to a sample of more than sequence_length tokens: truncate keeps its first tokens,
    drop leaves it out, and split continues it in further samples, which do not see what came before. A piece without a
    trained token is left out; all of this is counted.
    """

    ledger: bool = False
    """Whether the run writes down in its folder `ledger` which samples each step has consumed, for `stellarbyte data
    audit`; 8 to 12 bytes a sample.
    """

    cache_gb: float = 20.0
    """The most that is kept on this machine's disk of token shards that lie in a bucket, in GB (10^9 bytes); with 0
    everything is fetched each time that it is read.
    """

    cache_dir: str = "~/.cache/stellarbyte/shards"
    """The folder on this machine in which they are kept; each process that trains has a bound of cache_gb for itself.
    """

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of each source; None if they have none."""
        weights = tuple(source.weight for source in self.sources if source.weight is not None)
        return weights or None

    def __post_init__(self) -> None:
        check_path(self.tokenizer, "data.tokenizer")
        check_path(self.shards, "data.shards", bucket=True)
        check_path(self.cache_dir, "data.cache_dir")
        check_number("data.cache_gb", self.cache_gb, least=0)
        for source in self.sources:
            local(source.path, "data.sources.path", "sources are read from this machine: copy them here")
        require(bool(self.sources), "data.sources", list(self.sources), "must name at least one source of text")
        weightless = next((source.path for source in self.sources if source.weight is None), None)
        require(
            self.weights is None or weightless is None,
            "data.sources",
            weightless,
            "has no weight, but others have: give all sources a weight, or none",
        )
        check_whole("data.sequence_length", self.sequence_length, 2)
        check_whole("data.tokens_per_shard", self.tokens_per_shard, 1, MOST_TOKENS_PER_SHARD)
        require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "must be at least 0 and less than 1",
        )
        if self.kind == "text":
            for name, default in (("chat_template", None), ("loss_on", "assistant"), ("on_too_long", "truncate")):
                value = getattr(self, name)
                require(value == default, f"data.{name}", value, "is for data.kind chat: set that, or leave this out")
            for source in self.sources:
                plain = source.format == "auto"
                require(plain, "data.sources", source.path, "has a format, which is for data.kind chat: take it out")
        else:
            for source in self.sources:
                plain = source.fields == ("text",) and source.template is None
                complaint = "has fields or a template, which are for data.kind text: take them out"
                require(plain, "data.sources", source.path, complaint)
