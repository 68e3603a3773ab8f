"""`stellarbyte evaluate` on text: a run and its folder say the same, and every mistake gets a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert import hf_checkpoint
from convert.run_checkpoint import RunCheckpoint, save
from stellarbyte.door import main
from stellarbyte.evaluation.scorer import Scorer
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_torch.evaluation.scorer import TorchScorer
from test_convert import stock
from test_convert.models import sensible_params, tiny
from tiers import short_tier

WORDS = ("star", "byte", "the", "that was", "é。", "def star(byte):", "春眠", "return", "<|SEOS|>", "🚀")

FIELDS: dict[str, dict[str, Any]] = {
    "xpos": {},
    "rope": {"position_embedding": "rope", "parallel_residual": True, "attention_bias": True},
    "window": {"sliding_window": 9, "qk_norm": True, "residual": "deepnorm"},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_shared_experts": 1},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Documents of very unequal lengths, of two kinds."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    with path.open("w") as file:
        for number in range(40):
            words = " ".join(generator.choice(WORDS, generator.integers(1, 40)))
            file.write(json.dumps({"text": words, "kind": "even" if number % 2 == 0 else "odd"}) + "\n")
    return path


def figures(*words: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Law 3: what is summed up is equal to 1e-5, and what is counted to the token."""
    assert list(ours["domains"]) == list(theirs["domains"])
    for a, b in ((ours, theirs), *((ours["domains"][name], theirs["domains"][name]) for name in ours["domains"])):
        for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte", "calibration_error"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
        for name in ("documents", "tokens", "words", "bytes"):
            assert a[name] == b[name], name
        assert abs(a["accuracy"] - b["accuracy"]) * a["tokens"] <= 1  # of tokens that are equally likely


@pytest.mark.parametrize("name", short_tier([*FIELDS], 0))
def test_a_run_and_its_folder_have_the_same_figures(name, tokenizer, text, tmp_path, capsys) -> None:
    config = tiny(vocab_size=300, xpos_scale_base=64.0, **FIELDS[name])
    save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    how = ("--data", text, "--domain-field", "kind")
    for windows in ((), ("--window", "20", "--stride", "7")):
        ours, theirs = (figures(tmp_path / kind, *how, *windows, capsys=capsys) for kind in ("run", "hf"))
        same(ours, theirs)
        assert (ours["kind"], theirs["kind"]) == ("run", "folder")
        assert (ours["window"], ours["stride"]) == ((20, 7) if windows else (64, 64))


@pytest.mark.parametrize("family", short_tier(["llama", "mistral", "qwen3_moe"], 0))
def test_a_stock_folder_has_the_figures_of_its_own_logits(family, tokenizer, text, tmp_path, capsys) -> None:
    """Each document at once, without padding, by Transformers alone."""
    model = stock.stock_model(family)
    folder = stock.save(model, tokenizer, tmp_path / "stock")
    nats, tokens, size, short = 0.0, 0, 0, []
    for line in text.read_text().splitlines():
        document = json.loads(line)["text"]
        ids = [tokenizer.bos_token_id, *tokenizer.encode(document)]
        if len(ids) <= 49:  # a context of 48
            log_p = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1).detach()
            nats -= float(log_p[range(len(ids) - 1), ids[1:]].sum())
            tokens, size = tokens + len(ids) - 1, size + len(document.encode())
            short.append(line)
    (tmp_path / "short.jsonl").write_text("\n".join(short))
    found = figures(folder, "--data", tmp_path / "short.jsonl", capsys=capsys)
    assert (found["documents"], found["tokens"], found["bytes"]) == (len(short), tokens, size)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.long
def test_a_quantised_folder_and_a_run_of_bfloat16_are_measured(run_dir, exported, text, tmp_path, capsys) -> None:
    """Eight bits and half the digits cost little of a model's figures, and something."""
    how = ("--method", "rtn", "--bits", "8", "--group-size", "row", "--samples", "4", "--sequence-length", "24")
    assert main(["quantize", str(exported), str(tmp_path / "int8"), *how, "--data", str(text)]) == 0
    capsys.readouterr()
    floats = figures(exported, "--data", text, capsys=capsys)
    for found in (
        figures(tmp_path / "int8", "--data", text, capsys=capsys),
        figures(run_dir, "--data", text, "--dtype", "bfloat16", capsys=capsys),
        figures(exported, "--data", text, "--dtype", "bfloat16", capsys=capsys),
    ):
        assert 0 < abs(found["bits_per_byte"] / floats["bits_per_byte"] - 1) < 0.01
        assert found["tokens"] == floats["tokens"]


@pytest.mark.parametrize("sides", ["run", "folder"])
def test_padding_and_batches_change_no_score(sides, run_dir, exported) -> None:
    scorer: Scorer = JaxScorer(run_dir) if sides == "run" else TorchScorer(exported, "cpu")
    draw = np.random.default_rng(1)
    ids_BT = draw.integers(3, 290, (2, 24)).astype(np.int32)
    labels_BT = np.roll(ids_BT, -1, axis=1)
    together = scorer.score(ids_BT, labels_BT, np.array([24, 11]))
    for row, length in enumerate((24, 11)):
        alone = scorer.score(ids_BT[row : row + 1, :length], labels_BT[row : row + 1, :length], np.array([length]))
        for a, b in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_allclose(a[row, :length], b[0], rtol=1e-5, atol=1e-6)
        assert (together.hit_BT[row, :length] == alone.hit_BT[0]).all()
        assert (together.log_p_BT[row, :length] <= together.top_BT[row, :length] + 1e-6).all()


def test_both_sides_see_the_same_tokens_begin_at_the_same_bytes(run_dir, exported) -> None:
    text = "é star<|SEOS|> 春 🚀 byte"
    ours, theirs = JaxScorer(run_dir).encode(text), TorchScorer(exported, "cpu").encode(text)
    assert (ours.ids == theirs.ids).all()
    data = np.frombuffer(text.encode(), np.uint8)
    begins = np.flatnonzero((data & 0xC0) != 0x80)
    snapped = begins[np.searchsorted(begins, ours.starts, "right") - 1]
    assert (snapped == theirs.starts).all()
    assert ours.starts[0] == 0 and (np.diff(ours.starts) > 0).all()


def test_a_comparison_of_a_run_with_its_folder_shows_no_difference(run_dir, exported, text, capsys) -> None:
    assert main(["evaluate", str(run_dir), "--data", str(text), "--compare", str(exported)]) == 0
    said = capsys.readouterr().out
    assert said.count("windows of 64 tokens") == 2
    assert "40 documents): this text shows no difference between them" in said
    found = figures(run_dir, "--data", text, "--compare", exported, capsys=capsys)
    assert abs(found["comparison"]["difference"]) < 1e-5 and found["comparison"]["is_real"] is False
    assert found["compared_with"]["kind"] == "folder"


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("hf", [], "is a folder, which has no text of its own: name some with --data"),
        ("run", [], "holds an imported model, which has no validation split of its own: name text with --data"),
        ("hf", ["--limit", "3"], "--limit is for --data and --tasks: name texts or tasks"),
        ("run", ["--data", "T", "--tasks", "q.jsonl"], "--data and --tasks are two evaluations"),
        ("run", ["--data", "T", "--few-shot", "1"], "--few-shot is for tasks: name some with --tasks"),
        ("run", ["--tasks", "q.jsonl", "--few-shot", "1"], "--few-shot is for tasks of lm-eval"),
        ("run", ["--tasks", "q.jsonl", "--window", "9"], "--window is for text of yours: name some with --data"),
        ("run", ["--tasks", "q.jsonl"], "the task q.jsonl is no file: check the path"),
        ("run", ["--tasks", "T"], "lines.jsonl:1 has none of the fields context, query, question, ctx, prompt"),
        ("run", ["--tasks", "q.jsonl", "adapter"], "--tasks names q.jsonl and tasks of lm-eval"),
        ("run", ["--window", "12"], "--window is for text of yours: name some with --data"),
        ("hf", ["--data", "T", "--window", "65"], "--window 65 must be from 1 to 64, the tokens that"),
        ("run", ["--data", "T", "--stride", "65"], "--stride 65 must be from 1 to --window 64"),
        ("hf", ["--data", "T", "--step", "3"], "--step is for runs, and"),
        ("hf", ["--data", "T", "--ema"], "--ema is for runs, and"),
        ("run", ["--data", "T", "--device", "cpu"], "--device is for Hugging Face folders, and"),
        ("run", ["--data", "T", "--dtype", "float16"], "--dtype float16 is for Hugging Face folders"),
        ("run", ["--data", "T", "--step", "3"], "holds no checkpoint of step 3, only of 0"),
        (
            "run",
            ["--data", "T", "--data.shards", "x"],
            "--data.shards is for the run's own validation split, not",
        ),
        ("run", ["--data", "T", "--kv-budget", "9"], "--kv-budget is for the run's own validation split"),
        ("run", ["--data", "nowhere.txt"], "nowhere.txt does not exist"),
        ("run", ["--data", "T", "T"], "twice: give each text a name of its own"),
        ("run", ["--data", "T", "--text-field", "prose"], "lacks the field 'prose' (it has text, kind)"),
        ("run", ["--data", "T", "--limit", "0"], "--limit 0 must be at least 1"),
        ("run", ["--data", "T", "--limit", "3", "--compare", "hf"], "--compare needs at least 20 blocks"),
        ("run", ["--data", "T", "--batch-tokens", "0"], "--batch-tokens 0 must be at least 1"),
        ("run", ["--data", "T", "--compare", "hf", "--compare-step", "1"], "--compare-step is for runs, and hf is a "),
        ("run", ["--data", "T", "--compare", "run", "--compare-step", "1"], "run has no checkpoint of that step"),
        ("run", ["--data", "T", "--compare-step", "1"], "--compare-step 1 is a step of --compare, which is not given"),
        ("run", ["--data", "T", "--compare", "adapter"], "adapter is an adapter, which is measured with its base"),
        ("adapter", ["--data", "T"], "by `stellarbyte merge BASE adapter OUT`, and evaluate that"),
        ("finetuned", ["--data", "T"], "is a fine-tuning run: name what it has made, finetuned/adapter"),
        ("nowhere", ["--data", "T"], "nowhere is not there: name a folder"),
        ("hf", ["--data", "T", "--device", "moon"], "--device moon is not available here"),
    ],
)
def test_mistakes_get_a_sentence(
    model, options, sentence, run_dir, exported, text, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run_dir)
    (tmp_path / "hf").symlink_to(exported)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "finetuned" / "adapter").mkdir(parents=True)
    (tmp_path / "finetuned" / "config.yaml").write_text("model: hf\ndata: {sources: [{path: x}]}\n")
    assert main(["evaluate", model, *(str(text) if word == "T" else word for word in options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith("reading by ")]
    assert len(said) == 1 and said[0].startswith("stellarbyte: error: ")
    assert sentence in said[0]
