"""The commands `stellarbyte env` and `stellarbyte doctor`."""

import argparse
import json
import os


def env(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte env`."""
    parser.description = (
        "Tell what a report of a bug should say: versions, machine, devices, disks, caches, variables. Secrets are "
        "not shown, and ~ stands for your home."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_env)


def doctor(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte doctor`."""
    parser.description = (
        "Say what is wrong with this installation, and the command that mends it. The exit code is 1 if something is "
        "wrong. Nothing is changed."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_doctor)


def _env(options: argparse.Namespace) -> None:
    from stellarbyte.environment.environment import describe
    from stellarbyte.environment.text import text
    from stellarbyte.progress import progress

    with progress("looking at this machine"):
        found = describe(os.environ)
    print(json.dumps(found) if options.json else text(found))


def _doctor(options: argparse.Namespace) -> int:
    from stellarbyte.environment.doctor import examine, report, to_dict
    from stellarbyte.progress import progress

    with progress("libraries imported") as update:
        findings = examine(os.environ, update)
    print(json.dumps(to_dict(findings)) if options.json else report(findings))
    return 1 if any(finding.level == "wrong" for finding in findings) else 0
