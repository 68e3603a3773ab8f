"""`stellarbyte quantize`: a folder that has passed its gate, or none; and it goes on."""

import argparse
import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.quantizing import making
from convert.quantizing.options import METHODS
from convert.quantizing.options import quantize as add_options
from stellarbyte.command_line import Parser
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.info import info
from stellarbyte.interrupt import Interrupted
from stellarbyte.report.find import find_subject
from stellarbyte.report.structure import structure_of
from stellarbyte.safetensors_header import read_header
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.quantization import block_files
from stellarbyte_torch.quantization.gate import compare
from stellarbyte_torch.quantization.positions import positions_of
from stellarbyte_torch.quantization.settings import Method

from .conftest import FEW, GROUPS, PASS_ALL, SAY_ANYTHING

RTN = ("--method", "rtn", *GROUPS, *FEW)


def run(model, output, *options) -> int:
    parser = Parser(prog="stellarbyte quantize")
    add_options(parser)
    given = parser.parse_args([str(model), str(output), *options])
    assert isinstance(given, argparse.Namespace)
    return given.run(given)


def report_of(folder):
    return json.loads((folder / "quantization.json").read_text())


@pytest.fixture(scope="module")
def quantised(floats, text, tmp_path_factory):
    """The export at 8 bits by plain rounding, which loses next to nothing; nobody may change it."""
    path = tmp_path_factory.mktemp("quantised") / "q"
    assert run(floats, path, *RTN, "--bits", "8", "--data", str(text)) == 0
    return path


def test_a_run_becomes_a_folder_that_loads(trained, tmp_path, capsys) -> None:
    assert run(trained, tmp_path / "q", *RTN, "--bits", "8") == 0
    page = capsys.readouterr().out
    assert page.startswith("PASS: ")
    for words in ("perplexity", "kept as they were", "bits a weight in all", "q_proj"):
        assert words in page
    found = report_of(tmp_path / "q")
    assert found["calibration"]["source"].endswith("shards")
    assert found["weights"]["quantised"] == 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)
    assert set(found["weights"]["kept"]) > {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert len(found["layers"]) == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]
    ids = torch.tensor([[0, 5, 7, 9]])
    assert load_model(tmp_path / "q", "cpu")(ids).logits.isfinite().all()


def test_the_report_s_figures_are_those_of_the_two_models(floats, quantised) -> None:
    found = report_of(quantised)
    rows = torch.tensor(found["probe"]["rows"])
    given = {"input_ids": rows, "position_ids": positions_of(rows, 0)}
    with torch.no_grad():
        p, q = (load_model(folder, "cpu")(**given).logits[:, :-1].log_softmax(-1) for folder in (floats, quantised))
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert found["probe"]["kl"] == pytest.approx(kl, rel=1e-3)
    agreement = (p.argmax(-1) == q.argmax(-1)).float().mean().item()
    assert found["probe"]["top_1_agreement"] == pytest.approx(agreement)
    tensors = [tensor for file in quantised.glob("*.safetensors") for tensor in load_file(file).values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found["size"]["after"] == size
    assert found["weights"]["bits_per_weight"] == pytest.approx(8 * size / found["weights"]["all"])


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ("--method", "gptq", *GROUPS, "--no-symmetric"),
        ("--method", "awq", "--bits", "3", *GROUPS),
        ("--method", "gptq", "--bits", "8", "--group-size", "row", "--head"),
        (
            "--method",
            "smoothquant",
        ),
        ("--method", "int8-dynamic"),
    ],
    ids=lambda options: " ".join(options),
)
def test_every_method_s_folder_is_verified(floats, text, tmp_path, options) -> None:
    given = (*options, *FEW, "--data", str(text), *PASS_ALL)
    assert run(floats, tmp_path / "q", *given) == 0
    found = report_of(tmp_path / "q")
    assert all(layer["error"] <= layer["rounding_error"] * (1 + 1e-6) for layer in found["layers"])
    assert main(["convert", "verify", str(floats), str(tmp_path / "q")]) == 0


@pytest.fixture
def worse(monkeypatch):
    """Makes the gate find a perplexity that grew by 4.08 %; an untrained model has none to lose."""
    found = lambda *given: (real := compare(*given)) and replace(real, after=real.before + 0.04)  # noqa: E731
    monkeypatch.setattr(making, "compare", found)


@pytest.mark.usefixtures("worse")
def test_after_a_failed_gate_nothing_is_written_until_force_does_without_new_work(
    floats, text, tmp_path, capsys, monkeypatch
) -> None:
    options, saved, save = (*RTN, *SAY_ANYTHING, "--data", str(text)), [], block_files.save
    monkeypatch.setattr(block_files, "save", lambda *arguments: saved.append(1) or save(*arguments))
    assert run(floats, tmp_path / "q", *options) == 1
    said = capsys.readouterr()
    assert said.out.startswith("FAIL: ") and "(+4.08%, at most +3.00%)" in said.out
    assert "q is not written: take more bits" in said.err and "the same command goes on from there" in said.err
    assert [path.name for path in tmp_path.iterdir()] == [".q.partial"]
    assert run(floats, tmp_path / "q", *options, "--force", "--json") == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == report_of(tmp_path / "q")["verdict"] == "FAIL"
    assert len(saved) == 4, "each block was written once, by the first call"
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


@pytest.mark.long
@pytest.mark.usefixtures("worse")
def test_another_limit_passes_it(floats, text, tmp_path) -> None:
    options = (*RTN, *SAY_ANYTHING, "--data", str(text))
    assert run(floats, tmp_path / "q", *options, "--max-perplexity-increase", "5%") == 0


def test_an_untrained_model_of_two_bits_fails_though_it_has_no_perplexity_to_lose(
    floats, text, tmp_path, capsys
) -> None:
    options = (*RTN, "--bits", "2", "--data", str(text), "--max-perplexity-increase", "900%", "--json")
    assert run(floats, tmp_path / "q", *options) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "FAIL" and found["held_out"]["context_lost"] > found["held_out"]["max_context_lost"]


@pytest.mark.long
def test_a_folder_that_is_there_stays_unless_an_export_wrote_it(floats, quantised, text, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which no export wrote"):
        run(floats, tmp_path / "mine", *RTN, "--data", str(text))
    shutil.copytree(quantised, tmp_path / "q")
    assert run(floats, tmp_path / "q", *RTN, "--bits", "8", "--data", str(text)) == 0


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(Interrupted(signal.SIGINT), id="Ctrl-C"),
        pytest.param(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), id="full disk", marks=pytest.mark.long),
    ],
)
def test_it_goes_on_where_it_stopped(floats, quantised, text, tmp_path, monkeypatch, stop) -> None:
    options = (*RTN, "--bits", "8", "--data", str(text))
    save, saved = block_files.save, []

    def stopped(*arguments):
        if len(saved) == 2:
            raise stop
        saved.append(1)
        return save(*arguments)

    monkeypatch.setattr(block_files, "save", stopped)
    with pytest.raises((Interrupted, UserError)) as error:
        run(floats, tmp_path / "q", *options)
    told = str(getattr(error.value, "state", "") or error.value)
    assert told.endswith("and the same command goes on from there")
    assert [path.name for path in tmp_path.iterdir()] == [".q.partial"]
    monkeypatch.setattr(block_files, "save", lambda *arguments: saved.append(1) or save(*arguments))
    walk, taken = making.quantize_blocks, []
    monkeypatch.setattr(making, "quantize_blocks", lambda *given: taken.extend(given[5]) or walk(*given))
    assert run(floats, tmp_path / "q", *options) == 0
    assert sorted(taken) == ["embedding", "layer 0"], "the walk need not quantise these again"
    assert len(saved) == 4, "each block was written once"
    for file in quantised.glob("*.safetensors"):
        assert (tmp_path / "q" / file.name).read_bytes() == file.read_bytes()
    assert report_of(tmp_path / "q")["layers"] == report_of(quantised)["layers"]


def test_a_quantised_folder_is_not_quantised_again(quantised, text, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"is quantised already \(quant_method 'compressed-tensors'\).*name the folder of"
    ):
        run(quantised, tmp_path / "q", *RTN, "--data", str(text))


def test_info_tells_of_it(quantised) -> None:
    facts = info(quantised)
    assert facts["quantised"] == "rtn, 8 bits, groups of 16, compressed-tensors"
    assert facts["gate"] == "PASS"
    assert facts["parameters"] == report_of(quantised)["weights"]["all"]


def test_a_report_tells_its_structure_as_that_of_the_floats(floats, quantised) -> None:
    """Codes count as weights, and all bytes of the files are told of: by dtype, with scales."""
    plain, codes = find_subject(floats), find_subject(quantised)
    assert structure_of(plain) == structure_of(codes)
    assert codes.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "I8"
    stored = sum(tensor.nbytes for tensor in codes.tensors.values()) + codes.buffers
    headers = (read_header(file) for file in quantised.glob("*.safetensors"))
    assert stored == sum(tensor.end - tensor.start for header in headers for tensor in header.values())


@pytest.mark.long
def test_verify_finds_what_the_gate_measured_and_what_has_changed(floats, quantised, tmp_path, capsys) -> None:
    folder = tmp_path / "q"
    shutil.copytree(quantised, folder)
    assert main(["convert", "verify", str(floats), str(folder)]) == 0
    assert capsys.readouterr().out.startswith("PASS: ")
    assert json.loads((folder / "certificate.json").read_text())["verdict"] == "PASS"
    file = next(file for file in sorted(folder.glob("*.safetensors")) if "weight_packed" in str(list(load_file(file))))
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("down_proj.weight_scale"))
    tensors[key] = tensors[key] * 1.5
    save_file(tensors, file, {"format": "pt"})
    assert main(["convert", "verify", str(floats), str(folder)]) == 1
    told = capsys.readouterr().out
    assert "is not as it was written" in told and "one of the two folders is another" in told


def test_verify_wants_the_folder_of_floats(trained, quantised, capsys) -> None:
    assert main(["convert", "verify", str(trained), str(quantised)]) == 2
    assert "is quantised, and" in capsys.readouterr().err


def test_the_methods_are_those_that_there_are() -> None:
    """They are named again beside the options, so that --help needs no torch."""
    assert get_args(Method) == METHODS


def test_an_older_export_gets_the_code_of_today(quantised) -> None:
    code = (quantised / "modeling_stellarbyte.py").read_text()
    assert "sum_of_experts" in code
    assert making.REPORT == "quantization.json"
