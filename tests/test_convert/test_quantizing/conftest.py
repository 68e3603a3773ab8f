"""A run with token shards of its own, an export of it, and text that it has not seen."""

import jax
import numpy as np
import pytest

from convert import hf_checkpoint
from stellarbyte_jax.checkpoints.imported import save_imported
from stellarbyte_jax.checkpoints.metadata import RunMetadata
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.training.state import init_params
from stellarbyte_jax.training_config import TrainingConfig
from test_convert.models import tiny

# For the tests' tiny layers, whose inputs have 32 channels and more.
GROUPS = ("--group-size", "16")
# An untrained model of such weights is changed a lot by 4 bits.
SAY_ANYTHING = ("--max-context-lost", "900%")
PASS_ALL = ("--max-perplexity-increase", "900%", *SAY_ANYTHING)
FEW = ("--samples", "6", "--sequence-length", "24")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of text, of about 20,000 characters, none of whose lines repeats another."""
    path = tmp_path_factory.mktemp("text") / "stars.txt"
    numbers = np.random.default_rng(0).integers(0, 10**6, (400, 4))
    path.write_text("".join(f"star {a} was a byte of {b} bits, and so was the {c} of {d}\n" for a, b, c, d in numbers))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tokenizer, text):
    """A run with its token shards; nobody may change it."""
    home = tmp_path_factory.mktemp("trained")
    tokenizer.save_files(tokenizer.files, home / "tokenizer")
    model = tiny(vocab_size=300, hidden_size=32, intermediate_size=48, head_dim=8, xpos_scale_base=32.0)
    data = DataConfig(
        sources=(SourceConfig(str(text)),),
        tokenizer=str(home / "tokenizer"),
        shards=str(home / "shards"),
        sequence_length=32,
        validation_fraction=0.1,
    )
    manifest = prepare(data, report=lambda _: None)
    config = RunConfig(
        output_dir=str(home / "run"), model=model, data=data, training=TrainingConfig(max_steps=100, batch_size=2)
    )
    params = jax.device_get(jax.jit(init_params, static_argnums=(0, 1))(model, 0))
    save_imported(home / "run", params, RunMetadata(to_dict(config), tokenizer.files, data=DataIdentity.of(manifest)))
    return home / "run"


@pytest.fixture(scope="session")
def floats(trained, tmp_path_factory):
    """Its export; nobody may change it."""
    path = tmp_path_factory.mktemp("floats") / "hf"
    hf_checkpoint.to_hf(trained, path)
    return path
