"""Questions that a run is asked in its validations: the scores of `stellarbyte evaluate`, and the laws of runs."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from stellarbyte.curve_charts import panels_of
from stellarbyte.curves import RunCurves, read_curves
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.evaluation.batches import score_rows
from stellarbyte_jax.checkpoints.checkpoint import load_params
from stellarbyte_jax.checkpoints.listing import best_step
from stellarbyte_jax.config import DataConfig, MeshConfig, RunConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.eval_tasks import EvalTasks
from stellarbyte_jax.training.given import Given
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.programs import Programs
from test_jax.conftest import WORDS
from test_jax.jobs import Job
from test_jax.runs import check_law_6, records
from tiers import short_tier

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions of the corpus's words, as many as fill no batch; one context is longer than a row."""
    path, draw = tmp_path_factory.mktemp("tasks") / "quiz.jsonl", np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(7):
            context = " ".join(draw.choice(WORDS, 40 if number == 3 else draw.integers(1, 4)))
            choices = draw.choice(WORDS, 3, replace=False).tolist()
            file.write(json.dumps({"context": context, "choices": choices, "answer": int(draw.integers(3))}) + "\n")
    return str(path)


def evals(config: RunConfig) -> list[dict]:
    return [record for record in records(config.output_dir) if "validation_loss" in record]


def test_a_run_is_asked_at_each_validation_and_goes_on_as_if_it_had_not_been_stopped(
    run_config: Callable[..., RunConfig], quiz: str, disturb: Callable, one_device: None, capsys
) -> None:
    del one_device
    best = {"keep_best": 1, "metric_for_best_model": "validation_task_quiz"}
    config = run_config(training={"eval_tasks": (quiz,)}, checkpoint={"save_steps": 6, **best})
    check_law_6(config, dataclasses.replace(config, output_dir=f"{config.output_dir}-2"), disturb)
    asked = evals(config)
    assert [record["step"] for record in asked] == [0, 6, 12]
    for record in asked:
        for name in ("validation_task_quiz", "validation_task_quiz_by_bytes"):
            assert record[name] * 7 == pytest.approx(round(record[name] * 7))
    best = max(asked[1:], key=lambda record: (record["validation_task_quiz"], record["step"]))
    assert best_step(Path(config.output_dir)) == best["step"], "of those that are saved"
    said = capsys.readouterr().out
    assert f"quiz {asked[-1]['validation_task_quiz']:.3f}" in said and "quiz by bytes" in said

    assert main(["evaluate", config.output_dir, "--tasks", quiz, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["quiz"]
    assert found["accuracy"] == asked[-1]["validation_task_quiz"]
    assert found["accuracy_by_bytes"] == asked[-1]["validation_task_quiz_by_bytes"]

    curves = read_curves(Path(config.output_dir))
    assert curves["validation_task_quiz"].steps.tolist() == [0, 6, 12]
    assert [panel.name for panel in panels_of([RunCurves("run", curves)])][-1] == "accuracy of quiz"


def test_without_tasks_a_run_is_what_it_was(
    run_config: Callable[..., RunConfig], quiz: str, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program for questions; and asking some changes neither losses nor other figures."""
    monkeypatch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    config = run_config(training={"eval_tasks": (quiz,)})
    layout = Layout.of(config.mesh, make_mesh(config.mesh, devices=jax.devices()[:1]))
    assert Programs.of(run_config(), layout).choice_step is None
    assert pretrain(config)
    without = [{k: v for k, v in record.items() if "task_quiz" not in k} for record in records(config.output_dir)]
    assert without == records(finished_run)


@pytest.mark.parametrize(
    "mesh", short_tier([{"data": 2, "tensor": 2, "context": 2}, {"data": 2, "fsdp": 2, "expert": 2}], 0)
)
def test_rows_on_a_mesh_have_the_scores_of_one_device(
    mesh: dict[str, int], run_config: Callable[..., RunConfig], quiz: str, finished_run: Path, small_data: DataConfig
) -> None:
    config = run_config(training={"eval_tasks": (quiz,), "batch_size": 8})
    config = dataclasses.replace(config, mesh=MeshConfig(**mesh))
    layout = Layout.of(config.mesh, make_mesh(config.mesh))
    programs, given = Programs.of(config, layout), Given.of(config)
    tasks = EvalTasks.of(given.tasks, config, given.tokenizer, layout)
    assert tasks is not None and programs.choice_step is not None
    weights = jax.device_put(load_params(finished_run)[0], programs.shardings.params)
    done: list[tuple[int, int]] = []
    batches = tasks.batches(lambda *amounts: done.append(amounts))
    found = np.concatenate([programs.choice_step(weights, batch) for batch in batches])
    assert done == [(1, 3), (2, 3), (3, 3)]  # 21 rows in batches of 8
    assert (found[21:] == 0).all()

    scorer = JaxScorer(finished_run)
    rows = tasks.tasks[0].rows
    alone = {number: float(scores.log_p_N.sum()) for number, scores in score_rows(scorer, enumerate(rows), 512)}
    np.testing.assert_allclose(found[:21], [alone[number] for number in range(21)], rtol=1e-5)
    assert Tokenizer.load(small_data.tokenizer).bos_token_id == rows[0].ids[0]
    assert max(len(row.ids) for row in rows) == 25


@pytest.mark.long
def test_two_processes_have_the_answers_of_one(
    run_config: Callable[..., RunConfig], quiz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        alone = run_config(training={"eval_tasks": (quiz,)})
        assert pretrain(alone)
    two = dataclasses.replace(alone, mesh=MeshConfig(data=2), output_dir=str(tmp_path / "two"))
    save_config(two, tmp_path / "two.yaml")
    with Job(tmp_path / "two.yaml", count=2, devices=1) as job:
        ends = job.ends()
    assert [code for code, *_ in ends] == [0, 0], ends
    for ours, theirs in zip(evals(two), evals(alone), strict=True):
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-5)
        assert ours["validation_task_quiz"] == theirs["validation_task_quiz"]
        assert ours["validation_task_quiz_by_bytes"] == theirs["validation_task_quiz_by_bytes"]


def test_rows_are_cut_short_where_questions_are(run_config: Callable[..., RunConfig], quiz: str) -> None:
    config = run_config(training={"eval_tasks": (quiz,)})
    longer = dataclasses.replace(config.model, max_position_embeddings=1024, position_embedding="rope")
    data = dataclasses.replace(config.data, sequence_length=1024)
    config = dataclasses.replace(config, model=longer, data=data)
    layout = Layout.of(config.mesh, make_mesh(config.mesh, devices=jax.devices()[:1]))
    given = Given.of(run_config(training={"eval_tasks": (quiz,)}))
    tasks = EvalTasks.of(given.tasks, config, given.tokenizer, layout)
    assert tasks is not None and tasks.placement.length == 128


def test_mistakes_come_before_training(run_config: Callable[..., RunConfig], tmp_path: Path, one_device: None) -> None:
    del one_device
    with pytest.raises(UserError, match=r"the task nowhere\.jsonl is no file"):
        pretrain(run_config(training={"eval_tasks": ("nowhere.jsonl",)}))
    question = {"context": "a", "choices": ["star " * 40, "b"], "answer": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(question))
    with pytest.raises(
        UserError, match=r"question 1 of the task long has a choice of \d+ tokens, and the model reads 24"
    ):
        pretrain(run_config(training={"eval_tasks": (str(tmp_path / "long.jsonl"),)}))
