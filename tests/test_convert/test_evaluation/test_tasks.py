"""Tasks: lm-eval's on a run and on its folder, and a file of questions without lm-eval, have the same scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from tiers import short_tier

CONFIGS = Path(__file__).parents[3] / "configs" / "tasks"
WORDS = ("star", "byte", "the", "that was", "def star(byte):", "return", "é。")

GENERATION = """
task: go_on
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """The recipes with data of their own beside them; some contexts are longer than the model's."""
    folder = tmp_path_factory.mktemp("tasks")
    for file in CONFIGS.glob("*.yaml"):
        shutil.copy(file, folder)
    (folder / "go_on.yaml").write_text(GENERATION)
    draw = np.random.default_rng(0)
    questions = [
        {
            "context": " ".join(draw.choice(WORDS, count)) + "\n" * (count % 2),
            "choices": [" ".join(draw.choice(WORDS, draw.integers(1, 5))) for _ in range(3)],
            "answer": int(draw.integers(3)),
            "target_delimiter": "",
        }
        for count in draw.integers(1, 40, 24)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    texts = [" ".join(draw.choice(WORDS, count)) for count in (1, 7, 60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return folder


def scores(model: Path, *options: object, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["evaluate", str(model), *map(str, options), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", short_tier(["run", "folder"], 1))
def test_a_file_of_questions(kind, run_dir, exported, tasks, capsys) -> None:
    model = run_dir if kind == "run" else exported
    found = scores(model, "--tasks", tasks / "questions.jsonl", "--limit", "6", capsys=capsys)["tasks"]["questions"]
    assert found["questions"] == 6 and 0 <= found["accuracy"] <= 1
    assert main(["evaluate", str(model), "--tasks", str(tasks / "questions.jsonl"), "--limit", "6"]) == 0
    head, columns, line = capsys.readouterr().out.splitlines()
    assert str(model) in head and columns.split() == ["task", "questions", "accuracy", "by", "bytes"]
    assert line.split()[:3] == ["questions", "6", f"{found['accuracy']:.4f}"]


@pytest.mark.long
def test_a_run_its_folder_and_questions_alone_have_the_same_scores(run_dir, exported, tasks, capsys) -> None:
    pytest.importorskip("lm_eval", reason="make test-all installs it")
    run, folder = (scores(model, "--tasks", tasks, capsys=capsys)["results"] for model in (run_dir, exported))
    assert run.keys() == folder.keys() == {"next_line", "text_bits", "go_on"}
    for name in run:
        for metric, value in run[name].items():
            if isinstance(value, float):
                assert value == pytest.approx(folder[name][metric], rel=1e-5), (name, metric)
    for model in (run_dir, exported):
        alone = scores(model, "--tasks", tasks / "questions.jsonl", capsys=capsys)["tasks"]["questions"]
        assert alone["accuracy"] == run["next_line"]["acc,none"]
        assert alone["accuracy_by_bytes"] == run["next_line"]["acc_bytes,none"]
        assert alone["accuracy_stderr"] == pytest.approx(run["next_line"]["acc_stderr,none"])
        text = scores(model, "--data", tasks / "corpus.jsonl", capsys=capsys)
        for name in ("bits_per_byte", "word_perplexity", "byte_perplexity"):
            assert text[name] == pytest.approx(run["text_bits"][f"{name},none"], rel=1e-5)


@pytest.mark.long
def test_one_task_by_its_file_and_its_table(exported, tasks, capsys) -> None:
    pytest.importorskip("lm_eval", reason="make test-all installs it")
    words = ["evaluate", str(exported), "--tasks", str(tasks / "next_line.yaml"), "--limit", "5", "--few-shot", "0"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "|next_line|Yaml   |none  |     0|acc " in said and "text_bits" not in said
    assert "lm-eval 0." in said.splitlines()[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        (None, "holds no task: a YAML of lm-eval has `task:` with the task's name"),
        ("task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\n", "cannot load the task x: "),
        ("task: x\ndataset_path: somebody/something\ntest_split: test\n", "its data have to be local"),
        ("task: [x\n", "holds no task"),
        ("task: x\ndataset_path: json\noutput_type: telepathy\n", "cannot load the task x"),
    ],
)
def test_what_is_no_task(yaml, sentence, run_dir, tmp_path, capsys) -> None:
    pytest.importorskip("lm_eval", reason="make test-all installs it")
    if yaml is not None:
        (tmp_path / "task.yaml").write_text(yaml)
    assert main(["evaluate", str(run_dir), "--tasks", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("stellarbyte: error: ")]
    assert sentence in line
    for options, words in ((["--few-shot", "-1"], "--few-shot -1 must be at least 0"), ([], "gone is no")):
        path = tmp_path if options else tmp_path / "gone"
        assert main(["evaluate", str(run_dir), "--tasks", str(path), *options]) == 2
        assert words in capsys.readouterr().err or not options
