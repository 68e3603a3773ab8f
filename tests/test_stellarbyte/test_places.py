"""Paths in a bucket, over fsspec's file system in memory and over servers of S3 and Google Cloud Storage."""

import os
from pathlib import Path

import fsspec
import pytest

from memory_bucket import use_memory
from stellarbyte import bucket_errors, places
from stellarbyte.errors import UserError
from stellarbyte.files import check_path, write_json
from stellarbyte.metrics_file import records
from stellarbyte.places import BucketPath, is_remote, local, place
from stellarbyte.reading import read_json_object


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://runs, in memory."""
    use_memory(monkeypatch)
    return "s3://runs"


def check_paths(base: str) -> None:
    folder = place(base) / "a" / "b"
    assert isinstance(folder, BucketPath)
    assert not folder.exists() and not folder.is_dir() and list(folder.iterdir()) == [] and folder.files() == []
    (folder / "x.txt").write_bytes(b"0123456789")
    (folder / "below" / "y.txt").write_bytes(b"yy")
    assert folder.is_dir() and not folder.is_file() and (folder / "x.txt").is_file()
    assert sorted(entry.name for entry in folder.iterdir()) == ["below", "x.txt"]
    assert folder.sizes() == {"x.txt": 10}
    assert folder.files() == [folder / "below" / "y.txt", folder / "x.txt"]
    assert (folder / "x.txt").stat().st_size == 10
    assert (folder / "x.txt").read_range(2, 5) == b"234"
    with (folder / "x.txt").open() as file:
        assert file.read(3) == b"012" and file.seek(8) == 8 and file.read() == b"89"
    with pytest.raises(FileNotFoundError):
        (folder / "z").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "z").stat()
    folder.move_below(place(base) / "c")
    assert not folder.exists()
    assert (place(base) / "c" / "below" / "y.txt").read_bytes() == b"yy"
    (place(base) / "c").delete_below()
    assert not (place(base) / "c").exists()
    write_json(folder / "z.json", {"é": 1})
    assert read_json_object(folder / "z.json") == {"é": 1}
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for _, record in records(folder / "metrics.jsonl")] == [1, 2]
    (folder / "z.json").unlink()
    (folder / "z.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"no such bucket|no bucket"):
        place(base.replace("runs", "nowhere")).exists()


def test_a_bucket_has_paths(memory: str) -> None:
    check_paths(memory)


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_servers_have_paths(bucket: str) -> None:
    check_paths(bucket)


def test_names() -> None:
    path = place("gs://b//a/./c.txt")
    assert (str(path), path.name, path.suffix, str(path.parent)) == ("gs://b/a/c.txt", "c.txt", ".txt", "gs://b/a")
    assert isinstance(path, BucketPath) and path.bucket == "b" and path.key == "b/a/c.txt"
    assert place("gs://b").parent == place("gs://b") and path == place(path) and path != place("s3://b/a/c.txt")
    assert place("runs/x") == Path("runs/x") and not is_remote("gs") and not is_remote("./gs://b")
    for url in ("gs://", "s3:///", "gs://b/../c"):
        with pytest.raises(UserError, match=r"write .*BUCKET/FOLDER"):
            place(url)
    for url in ("gs:/b/c", Path("gs://b/c"), "GS://b", "s3a://b/c", "gcs://b"):
        with pytest.raises(UserError, match=r"is no path of this machine: .* written gs://BUCKET/FOLDER"):
            place(url)
        with pytest.raises(UserError, match="is no path of this machine"):
            local(url, "data.tokenizer")


def test_nothing_takes_it_for_a_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError):
        Path(place("gs://b/c"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        os.fspath(place("gs://b/c"))  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"data\.tokenizer gs://b/c is in a bucket"):
        check_path("gs://b/c", "data.tokenizer")
    assert check_path("gs://b/c", "output_dir", bucket=True) == "gs://b/c"
    with pytest.raises(UserError, match="is in a bucket, but so"):
        local("s3://b", "FILE", "so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_the_extra_is_named_where_it_is_missing(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError(f"Install {library}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=rf"needs {library}, .*pip install 'stellarbyte\[cloud\]'"):
        place(f"{scheme}://b/c").exists()


def test_requests_are_made_again_until_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bucket_errors.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bucket_errors.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    failures = iter([ConnectionError("away"), TimeoutError("slow")])

    def request() -> str:
        failure = next(failures, None)
        if failure is not None:
            raise failure
        return "done"

    assert bucket_errors.patiently("s3://b cannot be read", request) == "done" and now[0] < 3

    def away() -> str:
        raise ConnectionError("away")

    with pytest.raises(bucket_errors.BucketError, match=r"s3://b cannot be read, tried for 1.. seconds: away"):
        bucket_errors.patiently("s3://b cannot be read", away)
    assert now[0] < 1.2 * bucket_errors.SECONDS

    def refused() -> str:
        raise PermissionError("Access Denied")

    before = now[0]
    with pytest.raises(UserError, match="your credentials may not do that"):
        bucket_errors.patiently("s3://b cannot be read", refused)
    with pytest.raises(ZeroDivisionError):
        bucket_errors.patiently("s3://b cannot be read", lambda: 1 // 0)
    assert now[0] == before


@pytest.mark.long
def test_without_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    monkeypatch.setattr(places, "file_system", lambda _: fs)
    with pytest.raises(UserError, match="no credentials were found"):
        (place(s3) / "x").read_bytes()
