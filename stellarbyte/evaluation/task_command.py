"""What `stellarbyte evaluate --tasks` does with its options."""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.evaluation.batches import score_rows
from stellarbyte.evaluation.choices import TaskFigures, figures_of, read_tasks, rows_of
from stellarbyte.evaluation.opening import how_of, open_scorer, open_task_model
from stellarbyte.evaluation.report import head, questions_text
from stellarbyte.evaluation.tasks import is_task_file, load_tasks, run_tasks, tasks_json, tasks_text
from stellarbyte.figures import finite_json
from stellarbyte.model_kind import Kind
from stellarbyte.progress import progress


def on_tasks(options: argparse.Namespace, kind: Kind) -> None:
    """Scores tasks, and prints lm-eval's table, or that of questions, or JSON."""
    files = [path for path in options.tasks if not is_task_file(Path(path))]
    if files and len(files) < len(options.tasks):
        raise UserError(f"--tasks names {files[0]} and tasks of lm-eval: run the command once for each kind")
    if files:
        _on_questions(options, kind)
        return
    if options.few_shot is not None and options.few_shot < 0:
        raise UserError(f"--few-shot {options.few_shot} must be at least 0")
    how = how_of(options, kind, options.step)
    tasks = load_tasks([Path(path) for path in options.tasks])
    model, facts = open_task_model(options.model, kind, options.batch_tokens, how)
    results = run_tasks(model, tasks, options.few_shot, options.limit)
    if options.json:
        print(json.dumps(finite_json({**facts, **tasks_json(results)}), default=str))
    else:
        print(f"{head(facts)}; lm-eval {version('lm_eval')}\n\n{tasks_text(results)}")


def _on_questions(options: argparse.Namespace, kind: Kind) -> None:
    """Scores files of multiple-choice questions, without lm-eval."""
    if options.few_shot is not None:
        raise UserError("--few-shot is for tasks of lm-eval, and those of a file are asked as they stand: leave it out")
    tasks = read_tasks(options.tasks, options.limit)
    scorer = open_scorer(options.model, kind, how_of(options, kind, options.step))
    found: dict[str, TaskFigures] = {}
    with progress("scoring, choices") as update:
        reading = (lambda text: scorer.encode(text).ids), scorer.begin, scorer.positions
        rows = [list(rows_of(task, *reading)) for task in tasks]
        done, whole = 0, sum(map(len, rows))
        for task, some in zip(tasks, rows, strict=True):
            log_p = [0.0] * len(some)
            for place, scores in score_rows(scorer, enumerate(some), options.batch_tokens):
                log_p[place] = float(scores.log_p_N.sum(dtype=np.float64))
                done += 1
                update(done, whole)
            found[task.name] = figures_of(task, log_p)
    if options.json:
        print(json.dumps({**scorer.facts, "tasks": {name: figures.to_dict() for name, figures in found.items()}}))
    else:
        print(questions_text(scorer.facts, found))
