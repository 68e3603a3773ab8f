"""One flipped bit anywhere in a checkpoint or an export is refused or told, or changes nothing: never silently."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from convert import certificate, export_files, hf_checkpoint, run_checkpoint, staged_folder
from stellarbyte.errors import UserError
from stellarbyte.files import write_json
from stellarbyte.interrupt import Interrupted
from test_convert.models import bits

FLIPS = 150


def flipped(path: Path, draw: random.Random) -> bytes:
    """Flips one bit of a file; returns what it held."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    return content


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.long
def test_a_checkpoint_is_never_silently_another(run_dir, tmp_path):
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    before = run_checkpoint.load(run)
    draw, silent, refused = random.Random(0), [], 0
    files = files_below(run / "checkpoints")
    for _ in range(FLIPS):
        path = draw.choice(files)
        content = flipped(path, draw)
        try:
            after = run_checkpoint.load(run)
            same = (after.config, after.tokenizer_files, after.step) == (before.config, before.tokenizer_files, 0)
            if not same or bits(after.params) != bits(before.params):
                silent.append(str(path))
        except UserError:
            refused += 1
        path.write_bytes(content)
    assert silent == []
    assert refused > FLIPS // 4


@pytest.mark.long
def test_an_export_is_never_silently_another(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "hf"))
    hf_checkpoint.from_hf(folder, tmp_path / "run")
    before = run_checkpoint.load(tmp_path / "run")
    assert export_files.changed_since_export(folder) == []
    draw, silent, refused, told = random.Random(0), [], 0, 0
    files = files_below(folder)
    for number in range(FLIPS):
        path = draw.choice(files)
        content = flipped(path, draw)
        try:
            hf_checkpoint.from_hf(folder, tmp_path / str(number))
            after = run_checkpoint.load(tmp_path / str(number))
            same = (after.config, after.tokenizer_files) == (before.config, before.tokenizer_files)
            if export_files.changed_since_export(folder):
                told += 1
            elif not same or bits(after.params) != bits(before.params):
                silent.append(str(path))
        except UserError:
            refused += 1
        path.write_bytes(content)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    assert silent == []
    assert refused > FLIPS // 20 and told > FLIPS // 4


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("generation_config.json", '"eos_token_id": 1', '"eos_token_id": 3', "eos_token_id is 1 in the run, but 3 in"),
        ("chat_template.jinja", "assistant", "assistent", "chat_template.jinja is not that of the run"),
        ("tokenizer_config.json", "<|PAD|>", "<|SEOS|>", "pad_token in tokenizer_config.json is not that of the run"),
        ("tokenizer.json", '"ignore_merges": false', '"ignore_merges": true', "model in tokenizer.json is not that of"),
    ],
)
def test_verify_reads_the_small_files_too(exported, run_dir, tmp_path, name, old, new, complaint):
    folder = Path(shutil.copytree(exported, tmp_path / "hf"))
    checkpoint = run_checkpoint.load(run_dir)
    assert export_files.differences(checkpoint, folder, "the star") == []
    text = (folder / name).read_text("utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), "utf-8")
    (difference,) = export_files.differences(checkpoint, folder, "the star")
    assert complaint in difference
    assert export_files.changed_since_export(folder) == [name]


def test_an_export_that_puts_no_bos_before_a_text_is_different(exported, run_dir, tokenizer, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "hf"))
    (folder / "tokenizer.json").write_text(tokenizer.files["tokenizer.json"], "utf-8")
    (difference,) = export_files.differences(run_checkpoint.load(run_dir), folder, "the star")
    assert "is right: export again" in difference


def test_whoever_gives_up_waits_for_no_hash(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 40)  # its hash would take minutes
    write_json(tmp_path / staged_folder.MANIFEST, {"files": {"model.safetensors": "0"}})
    with pytest.raises(Interrupted), export_files.looking_for_changes(tmp_path):
        raise Interrupted(signal.SIGINT)


@pytest.mark.parametrize(
    "note", ["[]", '{"files": 3}', "[" * 100_000, '{"files": {"../x": "0"}}', '{"files": {"": 1}}']
)
@pytest.mark.usefixtures("no_models")
def test_an_exports_own_notes_may_be_a_strangers(exported, run_dir, tmp_path, note):
    folder = Path(shutil.copytree(exported, tmp_path / "hf"))
    (folder / "stellarbyte_export.json").write_text(note)
    assert export_files.changed_since_export(folder) in ([], ["../x"], [""])
    assert certificate.verify(run_dir, folder)["step"] == 0


def test_weights_are_read_from_the_folder_alone(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "hf"))
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    index = '{"weight_map": {"model.norm.weight": "../model.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="has no weight_map of key to model-"):
        hf_checkpoint.from_hf(folder, tmp_path / "run")
