"""lm-eval gives our class and the stock export one score, and the bits per byte that `evaluate` measures."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from convert import hf_checkpoint
from stellarbyte.door import main
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, save_imported
from stellarbyte_jax.config import ByteConfig, DataConfig, OptimizerConfig, RunConfig, SourceConfig, TrainingConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.corpus import stdlib_sources
from stellarbyte_jax.data.encoding_ahead import is_validation
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.training.evaluation import evaluate_run
from test_convert.models import sensible_params

pytestmark = pytest.mark.long
lm_eval = pytest.importorskip("lm_eval", reason="make test-all installs it")

LENGTH, FRACTION = 64, 0.5

# Bits per byte of whole documents, their ends included, as `evaluate` counts them: an end has no bytes.
BITS_TASK = """
task: local_bits
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: loglikelihood
doc_to_text: ""
doc_to_target: "{{{{text}}}}<|SEOS|>"
process_results: !function counting.process_results
metric_list:
  - metric: bits_per_byte
    aggregation: !function counting.bits_per_byte
    higher_is_better: false
"""
COUNTING = """
import math


def process_results(doc, results):
    (likelihood, _), = results
    return {"bits_per_byte": (likelihood, len(doc["text"].encode()))}


def bits_per_byte(items):
    return -sum(likelihood for likelihood, _ in items) / sum(size for _, size in items) / math.log(2)
"""
CHOICE_TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """(the tokenizer, texts that fill a row each with their beginning and end)."""
    corpus = [text for _, (_, text) in zip(range(60), stdlib_sources(), strict=False)]
    tokenizer = train_tokenizer(corpus, 600, tmp_path_factory.mktemp("tokenizer"), report=lambda _: None)
    pieces = []
    for text in corpus:
        ids = tokenizer.encode(text[:4000])
        piece = tokenizer.decode(ids[: LENGTH - 2])
        if len(tokenizer.encode(piece)) == LENGTH - 2 and "<|" not in piece and piece not in pieces:
            pieces.append(piece)
    assert len(pieces) > 20
    return tokenizer, pieces


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, texts):
    """A Llama-shaped run of random weights, with token shards of the texts."""
    tokenizer, pieces = texts
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in pieces))
    Tokenizer.save_files(tokenizer.files, folder / "tokenizer")
    data = DataConfig(
        sources=(SourceConfig(str(folder / "corpus.jsonl")),),
        tokenizer=str(folder / "tokenizer"),
        shards=str(folder / "shards"),
        sequence_length=LENGTH,
        validation_fraction=FRACTION,
    )
    manifest = prepare(data, report=lambda _: None)
    model = ByteConfig(
        vocab_size=608,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        position_embedding="rope",
    )
    config = RunConfig(
        str(folder / "run"), model, data, TrainingConfig(max_steps=1, batch_size=2), OptimizerConfig(warmup_steps=0)
    )
    metadata = RunMetadata(to_dict(config), dict(tokenizer.files), data=DataIdentity.of(manifest))
    save_imported(folder / "run", sensible_params(model), metadata)
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run_dir, texts, tmp_path_factory):
    """What lm-eval measures of the export in our class, and of the stock one."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import stellarbyte_torch  # noqa: F401 - makes the Auto classes know the architecture

    folder = tmp_path_factory.mktemp("tasks")
    _write_tasks(folder, [text for text in texts[1] if is_validation(text.encode(), FRACTION)])
    found = {}
    for family in (None, "llama"):
        export = folder / f"export-{family}"
        hf_checkpoint.to_hf(run_dir, export, family=family)
        model = AutoModelForCausalLM.from_pretrained(export)
        wrapped = HFLM(model, tokenizer=AutoTokenizer.from_pretrained(export), backend="causal", batch_size=4)
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        names = ["local_bits", "local_choice"]
        result = lm_eval.simple_evaluate(wrapped, tasks=names, task_manager=tasks, bootstrap_iters=0)
        found[type(model).__name__] = {name: result["results"][name] for name in names}
    return found


@pytest.mark.parametrize("family", [None, "llama"])
def test_long_texts_have_the_rolling_likelihood_of_lm_eval(family, run_dir, texts, tmp_path, capsys):
    """Its own class alone, on texts of many windows and of a few tokens; and the run, in JAX."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from stellarbyte_torch.evaluation.scorer import TorchScorer

    documents = ["\n".join(texts[1][:12]), texts[1][3], "é", "a b"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    hf_checkpoint.to_hf(run_dir, tmp_path / "hf", family=family)
    scorer = TorchScorer(tmp_path / "hf", "cpu")
    wrapped = HFLM(scorer.model, tokenizer=scorer.tokenizer, backend="causal", batch_size=4, add_bos_token=False)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in documents]
    nats = -sum(wrapped.loglikelihood_rolling(requests, disable_tqdm=True))
    expected = nats / sum(len(text.encode()) for text in documents) / math.log(2)
    capsys.readouterr()
    for model in (tmp_path / "hf", run_dir):
        assert main(["evaluate", str(model), "--data", str(tmp_path / "texts.jsonl"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["tokens"] > 3 * LENGTH
        assert abs(found["bits_per_byte"] - expected) < 1e-5, model
        words = sum(len(re.split(r"\s+", text)) for text in documents)
        assert found["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)


def _write_tasks(folder: Path, texts: list[str]) -> None:
    draw = random.Random(0)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    choices = [
        {"question": text[:20], "choices": [text[20:40], *(other[20:40] for other in draw.sample(texts, 3))]}
        for text in texts
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(choice) + "\n" for choice in choices))
    (folder / "local_bits.yaml").write_text(BITS_TASK.format(path=folder / "texts.jsonl"))
    (folder / "local_choice.yaml").write_text(CHOICE_TASK.format(path=folder / "choices.jsonl"))
    (folder / "counting.py").write_text(COUNTING)


def test_our_class_and_the_stock_one_have_the_same_scores(scores):
    ours, stock = scores["ByteForCausalLM"], scores["LlamaForCausalLM"]
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["local_choice"][metric] == stock["local_choice"][metric]
    a, b = (each["local_bits"]["bits_per_byte,none"] for each in (ours, stock))
    assert math.isclose(a, b, rel_tol=1e-6)


def test_bits_per_byte_are_those_of_evaluate(scores, run_dir):
    figures, _ = evaluate_run(str(run_dir))
    for name, found in scores.items():
        assert abs(found["local_bits"]["bits_per_byte,none"] - figures["bits_per_byte"]) < 1e-4, name
