"""Makes a quantised folder beside its place, and puts it there if it passes the gate."""

import gc
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convert import shards, staged_folder
from convert.config import read_fields
from convert.quantizing import rows
from convert.quantizing.folder import write_card, write_small_files
from convert.quantizing.source import Source, check_apart, open_source
from convert.versions import QUANTISING, versions_of
from stellarbyte.files import sha256_of_json, write_json, write_text
from stellarbyte.journal import NAME as NOTES
from stellarbyte.journal import Journal
from stellarbyte.looks.picture import check_drawable, picture
from stellarbyte.places import Place
from stellarbyte.progress import Update
from stellarbyte.staged_folder import Unfinished, staged
from stellarbyte_torch.model_folder import device_named, load_model
from stellarbyte_torch.quantization.block_files import BlockFiles, Contents, kept_names
from stellarbyte_torch.quantization.blocks import FolderModel
from stellarbyte_torch.quantization.compressed import config_fields
from stellarbyte_torch.quantization.fits import with_fitting_groups
from stellarbyte_torch.quantization.gate import compare, reference, run
from stellarbyte_torch.quantization.picture import PICTURE, errors_chart
from stellarbyte_torch.quantization.quantize import quantize_blocks
from stellarbyte_torch.quantization.report import PROBE_LENGTH, PROBE_ROWS, REPORT, Limits, Outcome, report
from stellarbyte_torch.quantization.settings import QuantizationSettings

_FLOATS, _SCRATCH = "floats", "scratch"

# Makes a bar of a name.
Bars = Callable[[str], AbstractContextManager[Update]]


@dataclass(frozen=True)
class Request:
    """What is to be quantised, how, and where to.

    model: a run or a model's folder. data: text or token shards instead of the run's own. limits: what may be lost at
    most. force: whether to write a folder that fails, and over files that no export wrote. step:
    of a run; the newest by default. device: where to compute; CUDA by default if there is one. fit_groups: whether
    groups become smaller where those of the settings do not divide a layer.
    """

    model: Place
    output: Path
    settings: QuantizationSettings
    data: str | None
    limits: Limits
    force: bool
    step: int | None
    device: str | None
    fit_groups: bool = False


def quantize(request: Request, bars: Bars, say: Callable[[str], None]) -> dict[str, Any]:
    """Quantises a model, and returns the report; `written` there says whether the folder is.

    What an interrupted call of the same request has done is not done again, nor what one has done whose result failed;
    `left` in the report says where that is.

    Raises:
        UserError: the model is none that can be quantised, or is already; the output would change it; the settings do
            not fit it; the text is empty or too short; activations are not finite; the disk is full.
    """
    started = time.monotonic()
    check_drawable(PICTURE)
    device = device_named(request.device)
    check_apart(request.model, request.output)
    output = request.output.resolve()
    keep = staged_folder.check_replaceable(output, request.force)
    source = open_source(request.model, request.step)
    remarks: list[str] = []  # told once it is known that the output can be written
    chosen = source.rows(request.data, request.settings, remarks.append)
    versions = versions_of(*QUANTISING)
    task = {
        "task": "quantize",
        "of": source.identity,
        "settings": asdict(request.settings),
        "rows": sha256_of_json(chosen.calibration.tolist()),
        "versions": versions,
    }
    found: dict[str, Any] = {}
    try:
        with staged(output, keep, task=task) as folder:
            for remark in remarks:
                say(remark)
            journal = Journal(folder, task)
            staged_folder.remove_others(folder, {_FLOATS, *kept_names(journal)})
            floats = source.folder(folder / _FLOATS)
            request = _with_fitting_groups(request, floats, say)
            contents = _blocks(request, floats, chosen, folder, journal, device, bars)
            outcome = _gate(request, floats, chosen, contents, folder, bars)
            about = {
                "model": str(request.model),
                "written": outcome.passes or request.force,
                "seconds": round(time.monotonic() - started, 1),
                "calibration": {
                    "source": chosen.source,
                    "rows": len(chosen.calibration),
                    "length": chosen.calibration.shape[1],
                },
                "versions": versions,
            }
            found = report(outcome, about)
            if not found["written"]:
                raise Unfinished
            _finish(source, floats, folder, found, contents)
    except Unfinished as failed:
        found["left"] = failed.state
    return found


def _with_fitting_groups(request: Request, floats: Path, say: Callable[[str], None]) -> Request:
    if not request.fit_groups:
        return request
    settings = with_fitting_groups(FolderModel(floats, torch.device("cpu")), request.settings)
    if settings.group_size != request.settings.group_size:
        groups = "one scale a row" if settings.group_size is None else f"groups of {settings.group_size}"
        say(f"groups of {request.settings.group_size} channels do not divide all layers: {groups} instead")
    return replace(request, settings=settings)


def _blocks(
    request: Request,
    floats: Path,
    chosen: rows.Rows,
    folder: Path,
    journal: Journal,
    device: torch.device,
    bars: Bars,
) -> Contents:
    """Quantises and writes block after block; those that an interrupted call has written stay."""
    files = BlockFiles(folder, request.settings, journal)
    scratch = folder / _SCRATCH
    scratch.mkdir()
    with bars(f"quantising by {request.settings.method}") as update:
        blocks = quantize_blocks(
            floats,
            request.settings,
            torch.from_numpy(chosen.calibration),
            scratch,
            update,
            files.written,
            device,
        )
        for block in blocks:
            files.add(block)
    shutil.rmtree(scratch)
    return files.finish()


def _gate(request: Request, floats: Path, chosen: rows.Rows, contents: Contents, folder: Path, bars: Bars) -> Outcome:
    """Measures the model of floats and the quantised one, one after the other, as Transformers loads them."""
    write_small_files(floats, folder, read_fields(floats), config_fields(request.settings, contents.left_out))
    held_out = torch.from_numpy(chosen.held_out)
    with bars("measuring the model before") as update:
        model: Any = load_model(floats, request.device)
        before, first = reference(model, held_out, update), run(model, held_out[0])
        del model
        gc.collect()
    with bars("measuring the quantised model") as update:
        model = load_model(folder, request.device)
        comparison = compare(model, before, update)
        probe = compare(model, before.beginning(PROBE_ROWS, PROBE_LENGTH))
        second = run(model, held_out[0])
    size = sum(tensor.nbytes for tensor in shards.read(floats).values())
    return Outcome(request.settings, contents, comparison, probe, before, (first, second), size, request.limits)


def _finish(source: Source, floats: Path, folder: Path, found: dict[str, Any], contents: Contents) -> None:
    """Writes the report, the picture, the card and the manifest, and removes what was needed on the way."""
    write_json(folder / REPORT, found)
    title = f"{found['verdict']}: error of each layer, {found['how']}"
    write_text(folder / PICTURE, picture(errors_chart(title, contents.errors)))
    write_card(floats, folder, found)
    shutil.rmtree(folder / _FLOATS, ignore_errors=True)
    about = {"stellarbyte": version("stellarbyte"), "step": source.step, "quantised": found["settings"]["method"]}
    staged_folder.write_manifest(folder, about, contents.hashes)
    (folder / NOTES).unlink()
