"""`stellarbyte report` measures: a run and its folder say the same, stock models too, and mistakes get a sentence."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from convert import hf_checkpoint, names
from convert.run_checkpoint import RunCheckpoint, save
from stellarbyte.door import main
from stellarbyte.report import machine
from stellarbyte.report.measurements import Measured
from stellarbyte.report.on_text import measure_on_text
from stellarbyte.report.stored_arrays import folder_arrays
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.report.reader import JaxReader
from stellarbyte_jax.report.weights import weight_arrays
from stellarbyte_torch.evaluation.scorer import TorchScorer
from stellarbyte_torch.pruning.importance import measure_importance
from stellarbyte_torch.report.reader import TorchReader
from test_convert import stock
from test_convert.models import sensible_params, tiny
from tiers import short_tier

TEXT = "the star that was a byte é。 and the byte that was a star: def star(byte): return byte * 2 春眠 🚀\n" * 4

FIELDS: dict[str, dict[str, Any]] = {
    "all": {"qk_norm": True, "attention_bias": True, "sliding_window": 9, "pruned_heads": ((1,), (0, 3))},
    "xpos": {},
    "deepnorm": {"residual": "deepnorm", "position_embedding": "rope", "parallel_residual": True},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_shared_experts": 1},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT[start:]}) + "\n" for start in (0, 30)), encoding="utf-8")
    return path


def close(ours: Any, theirs: Any) -> None:
    assert (np.equal(ours, None) == np.equal(theirs, None)).all()
    ours, theirs = (np.array(x, np.float64) for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def same(ours: Measured, theirs: Measured) -> None:
    """Law 3: the losses to 1e-5, and what gradients have made to 1e-4."""
    a, b = ours.token_losses, theirs.token_losses
    assert [token.text for token in a.tokens] == [token.text for token in b.tokens]
    np.testing.assert_allclose([token.loss for token in a.tokens], [token.loss for token in b.tokens], rtol=1e-5)
    assert (a.mean, a.bits_per_byte) == (pytest.approx(b.mean, rel=1e-5), pytest.approx(b.bits_per_byte, rel=1e-5))
    assert ours.attention is not None and theirs.attention is not None
    for name in ("entropy", "distance", "first_token"):
        close(getattr(ours.attention, name), getattr(theirs.attention, name))
    assert [(p.layer, p.head) for p in ours.attention.patterns] == [
        (p.layer, p.head) for p in theirs.attention.patterns
    ]
    for p, q in zip(ours.attention.patterns, theirs.attention.patterns, strict=True):
        np.testing.assert_allclose(p.weights, q.weights, atol=2e-3)
    assert ours.heads is not None and theirs.heads is not None
    close(ours.heads.importance, theirs.heads.importance)
    assert ours.heads.tokens == theirs.heads.tokens
    assert ours.remarks == theirs.remarks == ()


@pytest.mark.parametrize("name", short_tier([*FIELDS], 0))
def test_a_run_and_its_folder_say_the_same_of_a_text(name: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    config = tiny(vocab_size=300, xpos_scale_base=64.0, **FIELDS[name])
    save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    ours = measure_on_text(JaxReader(JaxScorer(tmp_path / "run")), str(text))
    theirs = measure_on_text(TorchReader(TorchScorer(tmp_path / "hf", "cpu")), str(text))
    same(ours, theirs)
    assert ours.attention is not None
    gone = [[head for head, value in enumerate(row) if value is None] for row in ours.attention.entropy]
    assert gone == [list(heads) for heads in FIELDS[name].get("pruned_heads", ((), ()))]


EVERYTHING = {
    "dense": {"xpos_learnable": True, "layer_scale_init": 0.5, "attention_bias": True, "qk_norm": True},
    "sparse": {**FIELDS["experts"], "tie_word_embeddings": True, "residual": "deepnorm"},
}


@pytest.mark.parametrize("name", [*EVERYTHING])
def test_the_names_of_a_runs_weights_are_its_folders(name: str, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny(vocab_size=300, xpos_scale_base=64.0, **EVERYTHING[name])
    save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    ours, theirs = weight_arrays(tmp_path / "run")[0], folder_arrays(tmp_path / "hf")
    assert ours.keys() == theirs.keys() == {tensor.key for tensor in names.hf_tensors(config)}
    for key, array in ours.items():
        assert array.shape == theirs[key].shape
        np.testing.assert_array_equal(array.read(), theirs[key].read())


@pytest.mark.parametrize("family", short_tier(["llama", "mistral", "qwen3", "mixtral"], 0))
def test_a_stock_folder(family: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    """Transformers' own attentions and gradients, row by row."""
    model = stock.stock_model(family)
    folder = stock.save(model, tokenizer, tmp_path / "stock")
    found = measure_on_text(TorchReader(TorchScorer(folder, "cpu")), str(text))
    assert found.remarks == () and found.attention is not None and found.heads is not None
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT)][:48]])
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    attentions = eager(ids, output_attentions=True).attentions
    first = [[float(head[1:, 0].detach().mean()) for head in layer[0]] for layer in attentions]
    close(found.attention.first_token, first)
    losses = [token.loss for token in found.token_losses.tokens]
    log_p = eager(ids).logits[0, :-1].double().log_softmax(-1)
    np.testing.assert_allclose(losses, -log_p[range(47), ids[0, 1:]].detach(), rtol=1e-5)


def test_the_worth_of_heads_is_prunings(exported: Path) -> None:
    reader = TorchReader(TorchScorer(exported, "cpu"))
    rows = [np.arange(3, 40), np.arange(50, 70)]
    batches = ({"input_ids": torch.tensor(row[None]), "labels": torch.tensor(row[None])} for row in rows)
    found = measure_importance(reader.scorer.model, batches)
    np.testing.assert_allclose(reader._effects(rows), np.array(found.heads), rtol=1e-6)
    np.testing.assert_allclose(reader.heads(rows), np.array(found.heads) / found.tokens, rtol=1e-6)


@pytest.mark.parametrize("family", short_tier(["gpt2", "gpt_neox", "falcon", "opt"], 0))
def test_families_of_other_words(family: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = {"ffn_dim": 24, "word_embed_proj_dim": 32} if family == "opt" else {"intermediate_size": 24}
    config = AutoConfig.for_model(family, **sizes, **other, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    folder = stock.save(model, tokenizer, tmp_path / "stock")
    found = measure_on_text(TorchReader(TorchScorer(folder, "cpu")), str(text))
    assert found.heads is not None and np.shape(found.heads.importance) == (2, 4)
    if family == "falcon":  # the only one of these whose attention cannot be exchanged
        assert found.attention is None and "FalconForCausalLM does not give it" in found.remarks[0]
    else:
        assert found.remarks == () and found.attention is not None
        assert np.shape(found.attention.entropy) == (2, 4)
    assert np.array(found.heads.importance, float).min() > 0


def report(*words: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["report", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.long
def test_the_command(run_dir: Path, exported: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = (report(path, "--data", text, capsys=capsys) for path in (run_dir, exported))
    for found in (ours, theirs):
        assert found["measured"].keys() == Measured.__dataclass_fields__.keys()
        assert found["measured"]["latency"] is None
    a, b = (found["measured"]["token_losses"]["mean"] for found in (ours, theirs))
    assert a == pytest.approx(b, rel=1e-5)
    by_name = [{(m["layer"], m["matrix"]): m for m in found["weights"]["matrices"]} for found in (ours, theirs)]
    assert by_name[0].keys() == by_name[1].keys()
    for key, matrix in by_name[0].items():
        assert matrix["effective_rank"] == pytest.approx(by_name[1][key]["effective_rank"], rel=1e-5), key
    assert ours["weights"]["init"] == theirs["weights"]["init"] == "distribution"
    assert report(exported, "--no-weights", capsys=capsys)["weights"] is None
    assert main(["report", str(exported), "--data", str(text)]) == 0
    said = capsys.readouterr().out
    for line in ("weights: ", "text: ", "attention over ", "heads: what 8 are worth"):
        assert line in said


@pytest.mark.long  # JAX compiles a program for each point
@pytest.mark.parametrize("kind", ["run", "hf"])
def test_half_the_digits(kind, run_dir, exported, text, monkeypatch, capsys) -> None:
    """The dtype is told; a run's weights stay in float32, as generate has them, and its cache takes half."""
    monkeypatch.setattr(machine, "_SIDE_OF_PROCESSORS", 64)
    path = run_dir if kind == "run" else exported
    asked = [path, "--latency", "--data", text, "--no-weights"]
    half, whole = (report(*asked, *dtype, capsys=capsys)["measured"] for dtype in (["--dtype", "bfloat16"], []))
    assert [found["latency"]["machine"]["dtype"] for found in (half, whole)] == ["bfloat16", "float32"]
    for a, b in zip(half["latency"]["points"], whole["latency"]["points"], strict=True):
        share = a["nbytes"] / b["nbytes"]
        assert (share == pytest.approx(0.5, abs=0.01)) if kind == "hf" else 0.55 < share < 1
    assert 0 < abs(half["token_losses"]["mean"] / whole["token_losses"]["mean"] - 1) < 0.01
    assert np.isfinite(np.array(half["heads"]["importance"], float)).any()


MISTAKES = [
    ("hf", ["--data", "nowhere.txt"], "nowhere.txt does not exist"),
    ("hf", ["--data", "EMPTY"], "holds no text: name a file that has some"),
    ("hf", ["--step", "3"], "--step 3 is a step of a run, and .*hf is a folder: leave it out"),
    ("run", ["--step", "1"], "holds an imported model, which was trained by no steps: leave --step out"),
    ("run", ["--step", "0"], "--step 0 must be at least 1"),
    (
        "run",
        ["--latency", "--dtype", "float16"],
        "--dtype float16 is for Hugging Face folders, and .*run is a run: take",
    ),
    ("config", ["--latency"], "--latency measures a model, and .*config.json has no weights: name a run or a folder"),
    ("config", ["--data", "TEXT"], "--data measures a model, and .*config.json has no weights"),
    ("config", ["--step", "1"], "--step measures a model, and .*config.json has no weights"),
    ("without tokenizer", ["--data", "TEXT"], "holds no tokenizer: copy the one there"),
    ("short", ["--weights"], "model.safetensors is not a whole safetensors file"),
    ("nan", ["--data", "TEXT"], "with NaN or infinite numbers"),
    ("run", ["--step", "1", "--data", "TEXT"], "holds an imported model"),
]


# The others need a model to be loaded.
@pytest.mark.parametrize(("kind", "options", "sentence"), short_tier(MISTAKES, 0, 2, 4, 5, 6, 7, 8))
def test_mistakes(
    kind: str,
    options: list[str],
    sentence: str,
    run_dir: Path,
    exported: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("")
    model = tmp_path / "hf"
    shutil.copytree(exported, model)
    if kind == "run":
        model = run_dir
    elif kind == "config":
        model = model / "config.json"
    elif kind == "without tokenizer":
        (model / "tokenizer.json").unlink()
    elif kind == "short":
        with (model / "model.safetensors").open("r+b") as file:
            file.truncate(9_000)
    elif kind == "nan":
        with (model / "model.safetensors").open("r+b") as file:
            file.seek(-64, 2)
            file.write(b"\xff" * 64)
    words = [{"TEXT": str(text), "EMPTY": str(tmp_path / "empty.txt")}.get(word, word) for word in options]
    assert main(["report", str(model), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("stellarbyte: ")]
    assert len(lines) == 1
    assert re.search(sentence, lines[0]), lines[0]
