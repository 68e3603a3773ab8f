"""What users get wrong ends in one sentence, before anything is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from stellarbyte.errors import UserError

from .conftest import FEW
from .test_command import GROUPS, RTN, run


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--bits", "5"), "bits 5 must be one of 2, 3, 4, 8"),
        (("--device", "banana"), "--device banana is not available here"),
        (("--group-size", "20"), r"group_size 20 does not divide the \d+ inputs of model\.layers\.0\.\w+\.\w+"),
        (("--method", "smoothquant", "--bits", "4"), "bits 4 contradicts method smoothquant"),
        (("--method", "int8-dynamic", "--embeddings"), "--embeddings is for methods that round weights alone"),
        (("--method", "rtn", "--damping", "0.1"), "--damping is for --method gptq, and this is rtn: leave it out"),
        (("--sequence-length", "64", "--data", "{short}"), "fewer than the 64 of one sample"),
        (("--data", "{empty}"), "holds no text"),
        (("--data", "{nowhere}"), "nowhere"),
        (("--data", "{noise}"), r"noise\.txt:1 is not valid UTF-8 .*: mend it$"),
        (("--step", "3"), "--step 3 names a checkpoint, but .* is a model's folder"),
        ((), "does not say what text it was trained on: name some with --data"),
    ],
)
def test_a_mistake_is_one_sentence(floats, text, tmp_path, options, sentence) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("the star was a byte")
    (tmp_path / "noise.txt").write_bytes(b"\xff" * 99)
    places = {name: tmp_path / f"{name}.txt" for name in ("empty", "short", "nowhere", "noise")}
    given = [word.format(**places) for word in options]
    rest = () if "--data" in given or not options else ("--data", str(text))
    with pytest.raises(UserError, match=sentence):
        run(floats, tmp_path / "q", *(GROUPS if "--method" not in given else ()), *FEW, *given, *rest)
    assert not (tmp_path / "q").exists()


def test_groups_become_smaller_unless_their_size_is_given(floats, text, tmp_path, capsys) -> None:
    assert run(floats, tmp_path / "q", "--method", "rtn", *FEW, "--data", str(text), "--force") in (0, 1)
    assert "groups of 128 channels do not divide all layers: groups of 16 instead" in capsys.readouterr().err
    found = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert found["config_groups"]["group_0"]["weights"]["group_size"] == 16


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--max-perplexity-increase", "three"), "'three' is no share: write 3% or 0.03"),
        (("--group-size", "all"), "'all' is neither a number of channels nor `row`"),
        (("--method", "magic"), "invalid choice"),
    ],
)
def test_an_option_is_refused_by_its_parser(floats, tmp_path, capsys, words, sentence) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(floats, tmp_path / "q", *words)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "output", "sentence"),
    [
        ("m", "m", "OUT .*m is MODEL itself, whose floats would be lost"),
        ("m", "m/q", "OUT .*q lies inside MODEL .*m"),
        ("m", ".", "holds MODEL .*m: name a folder beside it"),
        ("empty", "q", r"empty is neither a run, which has checkpoints, nor a model's folder, which has config\.json"),
        ("nowhere", "q", "nowhere is neither a run"),
    ],
)
def test_a_model_that_is_none_or_would_be_lost_is_refused(floats, text, tmp_path, model, output, sentence) -> None:
    shutil.copytree(floats, tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / model, tmp_path / output, *RTN, "--data", str(text), "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "m"]
    assert len(list((tmp_path / "m").iterdir())) == len(list(floats.iterdir()))


def test_activations_that_are_not_finite_are_told_by_layer_and_row(floats, text, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(floats, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 3e38
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = 3e38
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layer 1 .* not finite .* row \d"):
        run(broken, tmp_path / "q", *RTN, "--data", str(text))


def test_remarks_wait_until_it_is_known_that_the_folder_can_be_written(floats, text, tmp_path, capsys) -> None:
    (tmp_path / "in").touch()
    with pytest.raises(UserError, match="in/q cannot be written"):
        run(floats, tmp_path / "in" / "q", *RTN, *FEW, "--data", str(text), "--samples", "100000")
    assert "fewer than --samples" not in capsys.readouterr().err
