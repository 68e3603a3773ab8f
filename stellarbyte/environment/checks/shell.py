"""Checks what the shell and the system say of text and time."""

import locale
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.installation import package_folder

# More than a network file system's clock may be off by before files seem to come from the future.
_SECONDS_OFF = 5.0
_A_DAY = 86400.0


def check_text(files: str | None = None, stdout: str | None = None) -> list[Finding]:
    """Whether names of files and what is printed are UTF-8; the system's encodings unless others are given."""
    files = files or locale.getencoding()
    stdout = stdout or getattr(sys.stdout, "encoding", None) or "utf-8"
    for what, encoding in (("the locale", files), ("standard output", stdout)):
        if encoding.lower().replace("-", "").replace("_", "") not in ("utf8", "utf8sig", "cp65001"):
            words = f"{what} is {encoding}, not UTF-8: Chinese and other text is shown as escapes or cannot be read"
            return [Finding("text", "wrong", words, "export LANG=C.UTF-8 PYTHONUTF8=1")]
    return well("text", f"UTF-8, locale {'.'.join(filter(None, locale.getlocale())) or 'C'}")


def check_clock(now: float | None = None, here: Path | None = None) -> list[Finding]:
    """Whether the clock may be right: not before this package was made, and that of the disk here is the same.

    now: the time, in seconds of time.time(). here: the folder whose disk is asked; the working folder.
    """
    now = time.time() if now is None else now
    made = (package_folder() / "__init__.py").stat().st_mtime
    said = datetime.fromtimestamp(now).astimezone().isoformat(sep=" ", timespec="seconds")
    if now < made - _A_DAY:
        words = f"the clock says {said}, which is before this package was made: downloads fail, and ages are wrong"
        return [Finding("clock", "wrong", words, "timedatectl set-ntp true")]
    try:
        with tempfile.TemporaryFile(dir=here or Path.cwd()) as file:
            file.write(b".")
            file.flush()
            there = Path(f"/proc/self/fd/{file.fileno()}").stat().st_mtime if sys.platform == "linux" else now
    except OSError:  # the folder cannot be written, which is no matter of clocks
        return well("clock", said)
    if abs(there - now) > _SECONDS_OFF:
        words = f"the disk here is {abs(there - now):.0f} s {'ahead of' if there > now else 'behind'} this host's clock"
        return [Finding("clock", "note", words, "timedatectl set-ntp true, here and on the file server")]
    return well("clock", said)
