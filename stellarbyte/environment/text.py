"""Writes an environment as text to paste into a report of a bug."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.filesize import decimal

from stellarbyte.terminal_text import harmless

_WIDTH = 20


def text(found: Mapping[str, Any]) -> str:
    """The environment of `describe`, a fact a line, in sections."""
    sections = [
        ("StellarByte", _installation(found)),
        ("Libraries", _libraries(found["libraries"])),
        ("Machine", _machine(found["machine"])),
        ("Accelerators", _accelerators(found["accelerators"])),
        ("Disks", _disks(found["disks"])),
        ("Caches", _caches(found["caches"])),
        ("Environment variables", list(found["variables"].items()) or [("none that matter", "")]),
    ]
    lines: list[str] = []
    for title, rows in sections:
        width = max(_WIDTH, *(len(name) for name, _ in rows))
        lines += ["", title, *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)]
    return harmless("\n".join(lines[1:]))


def _installation(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    ours, python = found["stellarbyte"], found["python"]
    version = ours["version"] or "not installed, run from its sources"
    if "commit" in ours:
        version += f", commit {ours['commit']}{' with changed files' if ours['changed'] else ''}"
    venv = found["virtual_environment"]
    return [
        ("version", version),
        ("from", ours["path"]),
        ("Python", f"{python['version']} ({python['implementation']}), {python['executable']}"),
        ("environment", "none: the system's Python" if venv is None else f"{venv['kind']} {venv['path']}"),
        ("on PATH", ", ".join(found["programs"]) or "no program of this name"),
        ("encodings", f"files {python['file_system_encoding']}, stdout {python['stdout_encoding']}"),
        ("time", found["time"]),
    ]


def _libraries(found: Mapping[str, Mapping[str, str | None]]) -> list[tuple[str, str]]:
    rows = []
    for extra, libraries in found.items():
        if libraries and not any(libraries.values()):
            rows.append((extra, f"not installed ({', '.join(libraries)})"))
        elif libraries:
            rows.append((extra, ", ".join(f"{name} {version or '(none)'}" for name, version in libraries.items())))
    return rows or [("none", "StellarByte is not installed, so that its libraries are not known")]


def _machine(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cores = f"{found['cores']}, {found['cores_usable']} of them usable"
    cores += "" if found["cores_limit"] is None else f", limited to {found['cores_limit']:g}"
    memory = f"{_size(found['memory_bytes'])}, {_size(found['memory_free_bytes'])} of it free"
    memory += "" if found["memory_limit_bytes"] is None else f", limited to {_size(found['memory_limit_bytes'])}"
    inside = "" if found["container"] is None else f" in {found['container']}"
    rows = [("system", f"{found['platform']}{inside}"), ("processor", found["cpu"] or found["machine"])]
    rows += [("cores", cores), ("memory", memory), ("swap", _size(found["swap_bytes"]))]
    return rows + ([("load", ", ".join(map(str, found["load"])))] if found["load"] is not None else [])


def _accelerators(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("NVIDIA GPU", f"{gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}") for gpu in found["gpus"]]
    if found["driver_cuda"] is not None:
        rows.append(("driver's CUDA", found["driver_cuda"]))
    rows += [("TPU", "yes")] if found["tpu"] else []
    for name in ("jax", "torch"):
        rows.append((f"{name} sees", _seen(found[name])))
    cluster = found["cluster"]
    if cluster is None or "error" in cluster:
        words = "none" if cluster is None else cluster["error"]
    else:
        words = f"{cluster['kind']}, process {cluster['process_id']} of {cluster['processes']}"
    return [*rows, ("cluster", words)]


def _seen(answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return "not installed"
    if "error" in answer:
        return f"error: {answer['error']}"
    kinds = [f"{each['kind']}{_memory(each)}" for each in answer["devices"]]
    words = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    if "backend" in answer:
        words.append(f"backend {answer['backend']}")
    else:
        words.append(f"built for {_built(answer)}")
    return ", ".join(words)


def _built(answer: Mapping[str, Any]) -> str:
    if answer["cuda"] is None and answer["hip"] is None:
        return "CPUs"
    usable = "" if answer["cuda_usable"] else " (not usable)"
    return (f"ROCm {answer['hip']}" if answer["cuda"] is None else f"CUDA {answer['cuda']}") + usable


def _memory(device: Mapping[str, Any]) -> str:
    return "" if device["memory_bytes"] is None else f" of {_size(device['memory_bytes'])}"


def _disks(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            each["name"],
            each.get("error") or f"{_size(each['free_bytes'])} free of {_size(each['bytes'])}, {each['path']}",
        )
        for each in found
    ]


def _caches(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for each in found:
        size = "empty" if each["bytes"] is None else _size(each["bytes"])
        rows.append((each["name"], f"{'' if each['counted_whole'] else 'more than '}{size}, {each['path']}"))
    return rows


def _size(count: int | None) -> str:
    return "unknown" if count is None else decimal(count)
