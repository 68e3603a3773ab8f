"""`stellarbyte kv`: passages, planted lines, what is measured of them, and the mistakes."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from convert.kv_report.jax_reader import JaxReader
from convert.kv_report.measuring import Reading, Setting, measure, settings_of
from convert.kv_report.picture import draw
from convert.kv_report.rows import ANSWER, CUE, rows_of
from convert.kv_report.table import table
from convert.kv_report.torch_reader import TorchReader
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.registry import policy
from stellarbyte_jax.data.tokenizer import Tokenizer

WORDS = [f"{a}{b}" for a in ("al", "be", "ga", "de", "ep") for b in ("pha", "ta", "mma", "lta")]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Lines of words, hardly one of which comes twice."""
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.permutation(WORDS)[:9]) for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(lines))
    return path


def by_bytes(text: str) -> list[int]:
    return list(text.encode())


def test_passages_begin_with_bos_and_end_in_the_beginning_of_one_of_their_lines(text) -> None:
    rows = rows_of(str(text), by_bytes, 0, (4, 600, 400), print)
    assert rows.ids_NT.shape == (4, 600)
    assert (rows.ids_NT[:, 0] == 0).all()
    assert rows.planted_MP.shape == (4, 400)
    for prompt, answer in zip(rows.planted_MP.tolist(), rows.answers_MA.tolist(), strict=True):
        body, cue = bytes(prompt[:-CUE]), bytes(prompt[-CUE:])
        assert body.count(cue) == 1
        assert body.index(cue) < 0.4 * 400
        assert body[body.index(cue) + CUE :].startswith(bytes(answer))


def test_a_passage_has_as_many_lines_planted_as_are_wanted(tmp_path) -> None:
    (tmp_path / "stars.txt").write_text("".join(f"{number:08d} is the number of a star\n" for number in range(200)))
    one, three = (rows_of(str(tmp_path), by_bytes, 0, (4, 600, 400), print, lines) for lines in (1, 3))
    assert len(one.planted_MP) == 4 and len(three.planted_MP) == 12
    assert (three.planted_MP[::3] == one.planted_MP).all() and (three.answers_MA[::3] == one.answers_MA).all()
    assert len({prompt.tobytes() for prompt in three.planted_MP}) == 12


def test_a_text_without_lines_has_none_planted(tmp_path) -> None:
    (tmp_path / "one.txt").write_text("a" * 5000)
    rows = rows_of(str(tmp_path / "one.txt"), by_bytes, None, (40, 100, 80), print)
    assert rows.ids_NT.shape == (40, 100), "a passage takes little more of the text than its tokens have"
    assert rows.planted_MP.shape == (0, 80)
    assert rows.answers_MA.shape == (0, ANSWER)


def test_too_little_text_is_refused(tmp_path) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match=r"no passage of 100 tokens: name more text, or lower --row-tokens"):
        rows_of(str(tmp_path / "short.txt"), by_bytes, None, (2, 100, 80), print)


class Forgetful:
    """A reader whose pruned caches lose a tenth in perplexity, and the end of the second planted line."""

    def read(self, ids_NT: np.ndarray, prompt: int, setting: Setting | None) -> Reading:
        kept = [] if setting is None else [np.tile(np.arange(prompt - setting.slots, prompt), (len(ids_NT), 2, 1))] * 3
        return Reading(2.0 if setting is None else 2.0 + np.log(1.1), kept, 4096 if setting is None else 1024, 10.0)

    def guess(self, ids_MP: np.ndarray, answers_MA: np.ndarray, setting: Setting | None) -> np.ndarray:
        assert len(ids_MP) == len(answers_MA)
        guesses_MA = answers_MA.copy()
        guesses_MA[0, 2:] = -1  # what even the full cache does not find counts for no other
        if setting is not None:
            guesses_MA[1, -1:] = -1
        return guesses_MA


def test_what_is_measured_and_shown(text) -> None:
    rows = rows_of(str(text), by_bytes, 0, (3, 600, 400), print)
    report = measure(Forgetful(), rows, 400, settings_of([200, 100], ["window", "snap"], "uniform"))
    assert [(line.slots, line.policy) for line in report.lines] == [
        *((None, None), (100, "window"), (100, "snap"), (200, "window"), (200, "snap"))
    ]
    assert (report.planted, report.found_by_full, report.recalled_by_full) == (3, 2, 18)
    pruned = report.lines[1]
    assert pruned.change == pytest.approx(0.1)
    assert (pruned.found, pruned.recalled) == (0.5, 17 / 18)
    assert pruned.kept_LP is not None
    assert (pruned.kept_LP == (np.arange(400) >= 300)).all()
    shown = table(report)
    assert "3 planted lines: the full cache finds 2, and 18 of 24 of their tokens" in shown
    assert "+10.00%      50.0%      94.4%" in shown
    kept = json.loads(json.dumps(report.to_dict()))["lines"][2]["kept"]
    assert kept == [[0.0] * 12 + [1.0] * 4] * 3
    drawn = ElementTree.fromstring(draw("a < b", report))
    # In each of four panels each of three layers has kept one stretch, which begins within a column; and the legend.
    assert sum(part.get("opacity") is not None for part in drawn) == 4 * 3 * 2 + 4


def test_a_folder_is_measured(exported, text, tmp_path, capsys) -> None:
    few = ["--rows", "2", "--budgets", "20", "--policies", "window"]
    assert main(["kv", str(exported), "--data", str(text), *few, "-o", str(tmp_path / "kept.svg")]) == 0
    head, _, columns, full, pruned = capsys.readouterr().out.splitlines()[:5]
    assert head == "2 passages of 64 tokens, 48 of them the prompt"
    assert columns.split() == ["budget", "policy", "perplexity", "change", "found", "recalled", "cache", "tokens/s"]
    assert full.split()[0] == "all"
    assert pruned.split()[:2] == ["20", "window"]
    picture = (tmp_path / "kept.svg").read_text()
    assert ">20 of 48 tokens<" in picture and ">window<" in picture


def test_a_stock_model_is_measured(exported, text, tmp_path, capsys) -> None:
    """Its attention lets a pruned cache attend, and the command sees to that."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vocab = Tokenizer.load(exported).vocab_size
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=vocab, max_position_embeddings=64)).save_pretrained(tmp_path)
    for file in exported.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    assert main(["kv", str(tmp_path), "--data", str(text), "--rows", "1", "--budgets", "16", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert {line["policy"] for line in lines} >= {None, "snap", "heavy", "expected"}


@pytest.mark.long
def test_both_sides_say_the_same_of_a_model(run_dir, exported) -> None:
    ids = np.random.default_rng(0).integers(5, 250, (2, 60))
    setting = Setting(20, "uniform", policy("snap"))
    sides = [JaxReader(run_dir, None), TorchReader(exported, "cpu")]
    for which in (None, setting):
        here, there = (side.read(ids, 50, which) for side in sides)
        assert here.loss == pytest.approx(there.loss, rel=1e-5)
        assert here.cache_bytes == 2 * 2 * 2 * 8 * 4 * (60 if which is None else 20)
        assert there.cache_bytes == (here.cache_bytes * 59 // 60 if which is None else here.cache_bytes)
        assert np.array_equal(*(side.guess(ids[:, :50], ids[:, 50:53], which) for side in sides))
    assert all(np.array_equal(a[..., : b.shape[-1]], b) for a, b in zip(here.kept, there.kept, strict=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--budgets", "48"], "--budgets has 48 tokens, and the prompt 48: nothing would be dropped"),
        (["--budgets", "9"], "--budgets 9 is too small: the first tokens and the newest are always kept"),
        (["--budgets", "0"], "--budgets 0 is too small"),
        (["--budgets=-5"], "--budgets -5 is too small"),
        (["--budgets", "25%,200%"], "--budgets 200% must be above 0% and at most 100%"),
        (["--budgets", "abc"], "--budgets 'abc' is no number of tokens and no share: write 512 or 25%"),
        (["--policies", "best"], "--policies 'best' is unknown: use window, heavy"),
        (["--kv-shape", "cone"], "--kv-shape: invalid choice: 'cone'"),
        (["--row-tokens", "65"], "--row-tokens 65 is more than the model's context of 64"),
        (["--rows", "0"], "--rows 0 must be at least 1"),
        (["--lines", "0"], "--lines 0 must be at least 1"),
        (["-o", "kept.png"], "-o kept.png does not end in .svg"),
        (["-o", "gone/kept.svg"], "-o gone/kept.svg is in no folder that is there"),
        (
            ["--prompt-tokens", "60"],
            "a prompt of 60 tokens in a passage of 64 does not do",
        ),
        (["--step", "3"], "--step 3 names a checkpoint"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--data", "empty.txt"], "empty.txt holds no text: name a source that has some"),
        (["--data", "short.txt"], "short.txt has no passage of 64 tokens: name more text, or lower --row-tokens"),
        (["--device", "moon"], "moon"),
    ],
)
def test_mistakes_get_a_sentence(options, sentence, exported, text, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a few words")
    assert sentence in _refusal(["kv", str(exported), "--data", str(text), *options], capsys)


def test_what_is_no_model_is_refused(text, tmp_path, capsys) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("output_dir: runs/one\n")
    for given in (config, tmp_path / "gone", tmp_path):
        assert str(given) in _refusal(["kv", str(given), "--data", str(text)], capsys)
    assert "required: --data" in _refusal(["kv", str(tmp_path)], capsys)


def _refusal(words, capsys) -> str:
    """The one line of the error, which is all that a command prints that ends with exit code 2."""
    try:
        code = main(words)
    except SystemExit as exit_of_parser:
        code = exit_of_parser.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    return line
