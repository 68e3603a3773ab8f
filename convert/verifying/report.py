"""Writes a certificate for people: a table with PASS or FAIL first, and JSON with short lists on one line."""

import json
import re
from collections.abc import Mapping
from typing import Any

# Of the differences, as many as a terminal holds; the certificate has them all.
_MOST_SENTENCES = 20


def summary(certificate: Mapping[str, Any]) -> str:
    """The certificate for people: PASS or FAIL, a line for each check, and what is wrong."""
    if "run" in certificate:
        notes = " (LayerScale folded in)" * certificate["layer_scale_folded"]
        notes += " (the average of the weights)" * certificate["ema"]
        of = f"step {certificate['step']} of {certificate['run']}{notes}"
    else:
        of = certificate["first"]
    word = "is" if certificate["verdict"] == "PASS" else "is not"
    lines = [f"{certificate['verdict']}: {certificate['folder']} {word} {of}"]
    for check in certificate["checks"]:
        shown = {"ok": check["shown"], "not checked": check.get("why", "")}.get(
            check["result"], f"{len(check['differences'])} of the differences below"
        )
        lines.append(f"  {check['check']:<22}{check['result']:<12}{shown}".rstrip())
    differences = certificate["differences"]
    lines += differences[:_MOST_SENTENCES]
    if len(differences) > _MOST_SENTENCES:
        lines.append(f"(and {len(differences) - _MOST_SENTENCES} more differences)")
    return "\n".join(lines)


def to_json(certificate: Mapping[str, Any]) -> str:
    """The certificate as JSON for people: a list of token ids stands on one line."""
    text = json.dumps(certificate, indent=2, ensure_ascii=False)
    # No string holds a raw line break, so this matches lists of numbers alone.
    return re.sub(r"\[\n\s+((?:\d+,\n\s+)*\d+)\n\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
