"""Examines an installation: runs each check in turn, and shows what they have found."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stellarbyte.environment.accelerators import accelerators
from stellarbyte.environment.caches import caches
from stellarbyte.environment.checks import accelerators as devices
from stellarbyte.environment.checks import disk, imports, installation, libraries, runs, shell
from stellarbyte.environment.finding import Finding
from stellarbyte.environment.installer import for_this_python
from stellarbyte.terminal_text import harmless

_SIGNS = {"well": "ok   ", "note": "note ", "wrong": "WRONG"}


def examine(environment: Mapping[str, str], update: Callable[[int, int], None] = lambda *_: None) -> list[Finding]:
    """All that the checks have found, in the order in which a user should mend it.

    update: called with the number of libraries that were imported, and of all; that takes the most time.
    """
    kept = caches(environment)
    with ThreadPoolExecutor(1) as thread:
        seen = thread.submit(accelerators, environment)
        checks: Sequence[Callable[[], list[Finding]]] = (
            installation.check_python,
            lambda: installation.check_environment(environment),
            lambda: installation.check_programs(environment),
            installation.check_source,
            libraries.check_libraries,
            lambda: imports.check_imports(environment, update),
            lambda: devices.check_accelerators(seen.result(), environment),
            lambda: disk.check_space(kept),
            disk.check_shared_memory,
            lambda: disk.check_caches(kept),
            shell.check_text,
            shell.check_clock,
            runs.check_runs,
        )
        return [for_this_python(finding, environment) for check in checks for finding in check()]


def report(findings: Sequence[Finding]) -> str:
    """The findings, a line each, with the command that mends it below, and what it comes to at the end."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_SIGNS[finding.level]}  {finding.check:<{width}}  {finding.words}")
        lines += [f"{'':{width + 9}}{finding.mend}"] if finding.mend else []
    wrong = sum(finding.level == "wrong" for finding in findings)
    words = {0: "nothing is wrong", 1: "one thing is wrong"}.get(wrong, f"{wrong} things are wrong")
    return harmless("\n".join([*lines, "", words]))


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings, ready for JSON."""
    return {
        "well": not any(finding.level == "wrong" for finding in findings),
        "findings": [finding.to_dict() for finding in findings],
    }
