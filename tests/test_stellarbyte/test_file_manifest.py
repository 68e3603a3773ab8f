import json
import os
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST, check_files, damage, read_manifest, write_manifest
from stellarbyte.files import sha256_of_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rank_0").mkdir()
    for name in ("weights.bin", "rank_0/state.pt", "README.md"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_a_whole_folder(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["step"] == 3
    assert sorted(manifest["files"]) == ["rank_0/state.pt", "weights.bin"]
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert damage(folder) is None
    check_files(folder)


@pytest.mark.parametrize("name", ["weights.bin", "rank_0/state.pt"])
@pytest.mark.parametrize("change", ["flipped", "halved", "gone", "a folder", "a pipe"])
def test_each_damage_is_seen(name: str, change: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if change == "flipped":
        path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif change == "halved":
        path.write_bytes(content[: len(content) // 2])
    elif change == "a folder":
        path.mkdir()
    elif change == "a pipe":
        os.mkfifo(path)
    assert str(damage(folder)).startswith(name)
    with pytest.raises(UserError, match=f"is damaged: {name} .*: bring|is damaged: {name}.*; bring it back"):
        check_files(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"files": {"a": 3}}', '{"files": []}', "[" * 10**5, "\x00\xff"],
)
def test_a_manifest_of_no_use(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    assert MANIFEST in str(damage(folder))
    with pytest.raises(UserError, match=MANIFEST):
        check_files(folder)


def test_a_flipped_bit_of_the_manifest_is_seen(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    for place in range(len(content)):
        (folder / MANIFEST).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert damage(folder) is not None


def test_a_name_that_leads_elsewhere(folder: Path) -> None:
    manifest = {"files": {"../x": "a"}}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "sha256": sha256_of_json(manifest)}))
    assert damage(folder) == f"{MANIFEST} names the file '..', expected a plain file name without a folder"


def test_a_manifest_that_is_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    assert damage(folder) == f"{MANIFEST} is missing or damaged"


def test_a_folder_that_never_had_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    check_files(tmp_path)
