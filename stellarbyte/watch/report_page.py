"""Makes the report of a run by `stellarbyte report`, once somebody asks for it, and once for each newest checkpoint."""

import threading
from pathlib import Path
from typing import Literal, NamedTuple

from stellarbyte.watch.children import Children
from stellarbyte.watch.watched import Watched


class ReportPage(NamedTuple):
    """A report. state: whether it is there. content: the page if it is; what went wrong if it failed."""

    state: Literal["being made", "there", "failed"]
    content: str = ""


class Reports:
    """The reports of the runs that are watched. folder: where they are made."""

    def __init__(self, folder: Path, children: Children) -> None:
        self._folder, self._children = folder, children
        self._lock = threading.Lock()
        self._pages: dict[tuple[int, int | None, str], ReportPage] = {}

    def get(self, number: int, run: Watched, lang: str) -> ReportPage:
        """The report of a run at its newest checkpoint, in a language; it is begun if there is none."""
        key = (number, run.newest_checkpoint(), lang)
        with self._lock:
            if key in self._pages:
                return self._pages[key]
            self._pages = {
                other: page for other, page in self._pages.items() if other[:2] == key[:2] or other[0] != number
            }
            self._pages[key] = page = ReportPage("being made")
        output = self._folder / f"{number}-{key[1]}-{lang}.html"

        def done(_: str, error: str | None) -> None:
            made = self._made(output, error)
            with self._lock:
                if key in self._pages:
                    self._pages[key] = made

        self._children.begin(["report", str(run.run_dir), "-o", str(output), "--lang", lang], done)
        return page

    def _made(self, output: Path, error: str | None) -> ReportPage:
        try:
            return ReportPage("there", output.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return ReportPage("failed", error or "it made no page")
        finally:
            output.unlink(missing_ok=True)
