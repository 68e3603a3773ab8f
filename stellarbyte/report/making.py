"""Makes the reports of the models that one command names."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from stellarbyte.curves import Curve, read_curves, short_names, thinned
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.settings import KVBudget
from stellarbyte.places import Place
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.find import find_subject
from stellarbyte.report.flops import TRAINING_LENGTH, count_flops
from stellarbyte.report.measure import check_request, measure
from stellarbyte.report.measurements import CurvePoints
from stellarbyte.report.memory import Foreseen, count_memory
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.report import Report, Request
from stellarbyte.report.structure import structure_of
from stellarbyte.report.subject import Subject
from stellarbyte.report.weights import weights_of

# More points than a screen has columns.
_MOST_POINTS = 2000


def make_reports(
    paths: Sequence[Place],
    budget: KVBudget | None = None,
    request: Request = Request(weights=False),  # noqa: B008 - it is frozen
) -> list[Report]:
    """A report of each model, in their order.

    budget: that of a cache; None for all tokens. request: what is measured beside what is counted; by default nothing.

    Raises:
        UserError: one is no model, is named twice, or cannot be read or measured.
    """
    return [_report(name, path, budget, request) for name, path in zip(short_names(paths), paths, strict=True)]


def _report(name: str, path: Place, budget: KVBudget | None, request: Request) -> Report:
    subject = find_subject(path)
    check_request(subject, request)
    architecture, parameters = structure_of(subject), count_parameters(subject)
    training = subject.training
    foreseen, remarks = _foresee(subject, architecture)
    flops = count_flops(architecture, subject.fields, None if training is None else training.length, subject.adapters)
    if flops is None:
        remarks.append("FLOPs and the cache are not counted, because config.json does not say how the layers attend")
    else:
        flops.recomputed.update(foreseen.recomputed)
        if not flops.complete:
            remarks.append("some matrices have names that are not known: each is counted once a token")
    if any(group.attention is None and any(w.part == "other" for w in group.weights) for group in architecture.groups):
        remarks.append("some layers do not attend: what their states take and cost is not counted")
    if any(group.attention is not None and group.attention.latent is not None for group in architecture.groups):
        remarks.append("the cache holds latent vectors, of which each decoding step makes all keys and values again")
    curves, missing = _curves(subject)
    weights = weights_of(subject, request.weights)
    if weights is not None and weights.remark is not None:
        remarks.append(weights.remark)
    measured = measure(subject, request, architecture)
    return Report(
        name=name,
        kind=subject.kind,
        path=str(path),
        facts={what: text for what, text in subject.facts.items() if what != "kind"},
        architecture=architecture,
        parameters=parameters,
        memory=count_memory(subject, architecture, parameters, foreseen, budget),
        flops=flops,
        weights=weights,
        measured=measured,
        curves=curves,
        remarks=(*subject.remarks, *remarks, *missing, *measured.remarks),
    )


def _foresee(subject: Subject, architecture: Architecture) -> tuple[Foreseen, list[str]]:
    """What training needs, by the JAX wing's planner, and why it is not known."""
    if subject.config is None:
        unknown = f"activations are not foreseen, because the training of model_type {subject.model_type} is not known"
        return Foreseen(), [subject.misfit or unknown]
    if find_spec("jax") is None:
        return Foreseen(), ["activations are foreseen by JAX, which is not installed: pip install 'stellarbyte[jax]'"]
    training = subject.training
    rows = 1 if training is None else training.rows
    length = training.length if training is not None else min(architecture.context or TRAINING_LENGTH, TRAINING_LENGTH)
    foresee = import_module("stellarbyte_jax.planning.one_device").foresee
    try:
        foreseen: Foreseen = foresee(subject.config, None if training is None else training.run, rows, length)
    except UserError as error:
        return Foreseen(), [f"activations are not foreseen, because {error}"]
    return foreseen, list(foreseen.remarks)


def _curves(subject: Subject) -> tuple[dict[str, CurvePoints], list[str]]:
    """The curves of a run, thinned, and why there are none."""
    if subject.kind != "run" or not (subject.path / "metrics.jsonl").is_file():
        return {}, []
    try:
        return {name: _points(curve) for name, curve in read_curves(subject.path).items()}, []
    except UserError as error:
        return {}, [str(error)]


def _points(curve: Curve) -> CurvePoints:
    places = thinned(curve.values, _MOST_POINTS)
    steps, tokens, values = (np.asarray(of)[places].tolist() for of in (curve.steps, curve.tokens, curve.values))
    return CurvePoints(tuple(steps), tuple(tokens), tuple(values))
