import os
import socket
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.records.sources import files_of_sources, source_files


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path, "b.txt", "a.md", "sub/deeper/c.py", "sub/d.jsonl.gz", "sub/image.png", ".git/e.txt", "sub/.f.txt"
    )


def names(source: str, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in source_files(source).files]


def test_a_folder_is_searched_whole_in_order(folder: Path) -> None:
    assert names(str(folder), folder) == ["a.md", "b.txt", "sub/d.jsonl.gz", "sub/deeper/c.py"]


def test_globs_and_single_files(folder: Path) -> None:
    assert names(f"{folder}/*.txt", folder) == ["b.txt"]
    assert names(f"{folder}/**/*.[pm]*[yd]", folder) == ["a.md", "sub/deeper/c.py"]
    assert names(f"{folder}/**", folder) == ["a.md", "b.txt", "sub/d.jsonl.gz", "sub/deeper/c.py"]
    assert names(f"{folder}/*/deeper/*", folder) == ["sub/deeper/c.py"]
    assert names(f"{folder}/**/deeper/**/c.*", folder) == ["sub/deeper/c.py"]
    assert names(f"{folder}/.g*/*", folder) == [".git/e.txt"]
    assert names(f"{folder}/a.md", folder) == ["a.md"]
    assert names(f"{folder}/sub/.f.txt", folder) == ["sub/.f.txt"]
    write(folder, "odd[1].txt")
    assert names(f"{folder}/odd[1].txt", folder) == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere.txt", "nowhere.txt does not exist: check the path"),
        ("a.md/x.txt", "a.md/x.txt does not exist"),
        ("*.rst", r"no file matches .*\*.rst: check the pattern"),
        ("nowhere/*.txt", r"no file matches"),
        ("sub/image.png", "image.png has an unsupported format: use .txt .md"),
        ("sub/*.png", "image.png.*, of an unsupported format: use .txt .md .py .jsonl .ndjson"),
        ("sub/*g", "image.png.*, of an unsupported format"),
        ("empty", "empty holds no file that can be read"),
        ("x" * 300, "cannot be read: File name too long"),
        ("x\0y", "x\\\\x00y cannot be read: no path holds a NUL"),
        ("turns", "turns cannot be read: Too many levels"),
    ],
)
def test_sources_that_give_no_file(folder: Path, source: str, complaint: str) -> None:
    (folder / "empty").mkdir()
    (folder / "turns").symlink_to("turns")
    with pytest.raises(UserError, match=complaint) as error:
        source_files(f"{folder}/{source}")
    assert "\n" not in str(error.value)


def test_an_empty_path_is_not_the_folder_we_are_in() -> None:
    with pytest.raises(UserError, match="the path of a source is empty"):
        source_files("")


def test_a_home_that_nobody_has(folder: Path) -> None:
    with pytest.raises(UserError, match="nobody-of-that-name"):
        source_files("~nobody-of-that-name/x.txt")
    assert folder


@pytest.mark.parametrize("source", ["", "/", "/**", "/**/*.txt", "/*/../**/*.txt", "/*", "/*/*"])
def test_links_lead_to_every_file_once(tmp_path: Path, source: str) -> None:
    data = write(tmp_path / "data", "a.txt", "sub/b.txt")
    outside = write(tmp_path / "outside", "c.txt", "deep/d.txt")
    (data / "loop").symlink_to("..")
    (data / "sub" / "up").symlink_to(data)
    (data / "again.txt").symlink_to("a.txt")
    (data / "0.txt").symlink_to("sub/b.txt")
    os.link(data / "a.txt", data / "z.txt")
    (data / "out").symlink_to(outside)
    (data / "sub" / "out2").symlink_to(outside / "deep")
    (data / "gone.txt").symlink_to("nowhere")
    found = source_files(f"{data}{source}").files
    inodes = [path.stat().st_ino for path in found]
    assert len(inodes) == len(set(inodes))
    names = {path.resolve().name for path in found}
    # Without ** a glob goes as deep as it says.
    expected = {"/*": {"a.txt", "b.txt"}, "/*/*": {"b.txt", "c.txt"}}
    assert {name.replace("z", "a") for name in names} == expected.get(source, {"a.txt", "b.txt", "c.txt", "d.txt"})
    if source in ("", "/", "/**"):
        assert [path.relative_to(data).as_posix() for path in found] == [
            "a.txt",
            "out/c.txt",
            "out/deep/d.txt",
            "sub/b.txt",
        ]


def test_a_linked_folder_is_the_source(tmp_path: Path) -> None:
    write(tmp_path / "data", "a.txt")
    (tmp_path / "link").symlink_to("data")
    assert names(f"{tmp_path}/link", tmp_path) == ["link/a.txt"]
    assert names(f"{tmp_path}/link/*.txt", tmp_path) == ["link/a.txt"]
    assert names(f"{tmp_path}/l*/*.txt", tmp_path) == ["link/a.txt"]


def test_what_is_not_read_is_told(folder: Path) -> None:
    write(folder, "x.html", "y.html", "z.html", "w.HTML", "k.tar.lz4", "README", "b.txt~", "#b.txt#", "~$t.csv")
    write(folder, "b.txt.bak")
    (folder / "nothing.txt").touch()
    os.mkfifo(folder / "pipe.jsonl")
    files, remark = source_files(str(folder))
    assert len(files) == 5
    assert remark is not None
    assert remark.startswith(f"{folder}: 5 files read; left out: ")
    for part in (
        "4 .html (w.HTML, x.html, y.html, …)",
        "1 .bak (b.txt.bak)",
        "1 .lz4 (k.tar.lz4)",
        "1 without a suffix (README)",
        "3 editor's backup (",
        "2 hidden (.git, sub/.f.txt)",
        "1 empty (nothing.txt)",
        "1 named pipe (pipe.jsonl)",
    ):
        assert part in remark or "kinds more" in remark, part
    assert source_files(f"{folder}/b.txt").remark is None
    assert source_files(f"{folder}/*.md").remark is None
    remark = source_files(f"{folder}/*").remark
    assert remark is not None and "4 .html" in remark and "image" not in remark


def test_what_training_wrote_is_no_text(tmp_path: Path) -> None:
    data = write(tmp_path, "a.txt", "notes/config.json", "notes/manifest.json")
    write(data, "shards/manifest.json", "shards/train-documents.npy", "begun/recipe.json", "begun/train-documents.npy")
    write(data, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
    write(data, "hf/config.json", "hf/model.safetensors", "hf/README.md", "hf/modeling_stellarbyte.py")
    write(data, "runs/one/config.yaml", "runs/one/metrics.jsonl", "runs/one/checkpoints/100/x.json")
    write(data, "runs/one/corpus.jsonl", "runs/one/checkpoint-5/trainer_state.json", "runs/one/checkpoint-5/x.py")
    write(data, "runs/one/adapter/adapter_config.json", "runs/one/adapter/README.md")
    expected = ["a.txt", "notes/config.json", "notes/manifest.json", "runs/one/corpus.jsonl"]
    assert names(str(data), data) == expected
    assert names(f"{data}/**", data) == expected
    assert names(f"{data}/*/*.json", data) == expected[1:3]
    remark = source_files(str(data)).remark
    assert remark is not None
    for part in (
        "2 token shards (begun, shards)",
        "1 tokenizer (tokenizer)",
        "1 model (hf)",
        "1 adapter",
        "1 checkpoint",
    ):
        assert part in remark
    # Where one of them is the source, what else it holds is read.
    assert names(f"{data}/runs/one", data) == ["runs/one/corpus.jsonl"]
    assert names(f"{data}/runs/one/*.jsonl", data) == ["runs/one/corpus.jsonl"]
    with pytest.raises(UserError, match=r"tokenizer holds no file that can be read, but 2 written by training"):
        source_files(f"{data}/tokenizer")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.txt"))
    for path, kind in (
        (f"{tmp_path}/pipe.jsonl", "a named pipe"),
        (f"{tmp_path}/s.txt", "a socket"),
        ("/dev/zero", "a device"),
    ):
        with pytest.raises(UserError, match=f"is {kind}, not a file: write what it gives to a file"):
            source_files(path)
    with pytest.raises(UserError, match=r"but 1 named pipe \(pipe.jsonl\), 1 socket \(s.txt\)"):
        source_files(str(tmp_path))


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff.txt")).write_text("x")
    (tmp_path / os.fsdecode(b"b\xff\n.png")).write_text("x")
    files, remark = source_files(str(tmp_path))
    assert len(files) == 1
    assert remark is not None and r"1 .png (b\xff\n.png)" in remark


def test_no_file_is_read_for_two_sources(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    told: list[str] = []
    sources = [(f"{tmp_path}/a.txt", "x"), (str(tmp_path), "x"), (f"{tmp_path}/b.txt", "y")]
    found = files_of_sources(sources, told.append)
    assert [(index, path.name) for index, path in found] == [(0, "a.txt"), (1, "b.txt"), (2, "b.txt")]
    assert told == [f"{tmp_path}: files that an earlier source has are not read again: 1"]


@pytest.mark.long
def test_many_files(tmp_path: Path) -> None:
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for file in range(1000):
            (tmp_path / str(folder) / f"{file}.txt").touch()
    assert len(source_files(str(tmp_path)).files) == 100_000
