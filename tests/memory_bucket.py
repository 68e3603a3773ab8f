"""A bucket in memory, for tests of paths in gs:// and s3:// that need no server."""

import fsspec
import pytest

from stellarbyte import places


def use_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every bucket's files in memory, where there is one empty bucket, "runs"."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = ["", "/runs"]
    monkeypatch.setattr(places, "file_system", lambda _: fs)
    monkeypatch.setattr(places, "_SEEN", set())
