"""The right flags on the right machine, a user's own before ours, and none that the compiler does not know."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from stellarbyte.door import build_parser
from stellarbyte_jax import commands
from stellarbyte_jax.machine import xla_flags
from stellarbyte_jax.machine.xla_flags import FLAGS, flag_settings, known_flags, missing_flags, platform_here


def in_a_library(*flags: str) -> bytes:
    return b"\0".join([b"", *(flag.partition("=")[0][2:].encode() for flag in flags), b""])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine with both plugins, whose devices a test adds."""
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "dev" / "vfio" / "vfio").touch()
    library = tmp_path / "library.so"
    library.write_bytes(in_a_library(*FLAGS["gpu"]))
    monkeypatch.setattr(xla_flags, "_libraries", lambda *_: [library])
    monkeypatch.setattr(xla_flags, "find_spec", lambda name: name)
    return tmp_path


@pytest.mark.parametrize(
    ("device", "wanted", "platform"),
    [
        (None, "", None),
        ("nvidia0", "", "gpu"),
        ("dxg", "", "gpu"),
        ("nvidiactl", "", None),
        ("accel0", "", "tpu"),
        ("vfio/0", "", "tpu"),
        ("nvidia0", "cpu", None),
        ("nvidia0", "cpu,cuda", None),
        (None, "cuda,cpu", "gpu"),
        (None, "tpu", "tpu"),
    ],
)
def test_what_jax_will_run_on(device: str | None, wanted: str, platform: str | None, machine: Path) -> None:
    if device is not None:
        (machine / "dev" / device).touch()
    assert platform_here({"JAX_PLATFORMS": wanted}, machine) == platform


def test_a_device_without_its_plugin_is_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "dev" / "nvidia0").touch()
    (machine / "dev" / "accel0").touch()
    monkeypatch.setattr(xla_flags, "_libraries", lambda *_: [])
    monkeypatch.setattr(xla_flags, "find_spec", lambda _: None)
    assert platform_here({}, machine) is None


@pytest.mark.usefixtures("machine")
def test_a_users_own_flags_stand() -> None:
    first, second, *others = FLAGS["gpu"]
    theirs = f"{first.partition('=')[0]}=false --xla_something=1"
    settings, line = flag_settings({"XLA_FLAGS": theirs}, "gpu")
    assert settings == {"XLA_FLAGS": " ".join([theirs, second, *others])}
    assert line is not None and second in line and first not in line and "unknown" not in line
    assert flag_settings(settings, "gpu") == ({}, None), "twice is once"
    assert flag_settings({}, None) == ({}, None)
    assert missing_flags("gpu", f"--no{second.partition('=')[0][2:]}") == (first, *others)

    settings, line = flag_settings({"XLA_FLAGS": "/etc/flags"}, "gpu")
    assert settings == {} and line is not None and "names a file" in line


def test_flags_that_this_jaxlib_does_not_know_are_left_out(machine: Path) -> None:
    first, *others = FLAGS["gpu"]
    (machine / "library.so").write_bytes(in_a_library(first))
    settings, line = flag_settings({}, "gpu")
    assert settings == {"XLA_FLAGS": first}
    assert line is not None and f"unknown to this jaxlib: {others[0].partition('=')[0][2:]}" in line
    assert known_flags(FLAGS["gpu"], []) == (), "no parser to ask: better none than an abort"

    # A flag that was taken out: its name is left in the text of a protocol buffer.
    (machine / "library.so").write_bytes(b"\0xla_dump" + first.partition("=")[0][2:].encode() + b"R\x1bxla_other\0")
    assert flag_settings({}, "gpu") == ({}, None)


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        (["plan", "c.yaml", "--topology", "v5e:2x2", "--compile"], "LIBTPU_INIT_ARGS"),
        (["plan", "c.yaml", "--topology", "v5e:2x2", "--compile", "--no-xla-flags"], None),
        (["plan", "c.yaml", "--topology", "v5e:2x2"], None),
        (["pretrain", "c.yaml"], "XLA_FLAGS"),
        (["pretrain", "c.yaml", "--no-xla-flags"], None),
        (["evaluate", "."], None),
    ],
    ids=str,
)
def test_what_the_cli_sets(
    command: list[str], variable: str | None, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan is compiled as a TPU would, whatever machine makes it; a run as the machine that it runs on."""
    environment = {"JAX_PLATFORMS": "cuda", "XDG_CACHE_HOME": str(machine)}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setitem(FLAGS, "tpu", ("--xla_tpu_some=true",))
    (machine / "library.so").write_bytes(in_a_library("--xla_tpu_some", *FLAGS["gpu"]))
    for name in ("plan", "pretrain", "evaluate"):
        monkeypatch.setattr(commands, name, lambda _: 0)
    options = build_parser().parse_args(command, Namespace(overrides=[], own_process=False, remarks=()))
    (machine / "config.yaml").write_text("model: {}\n")
    monkeypatch.chdir(machine)
    options.run(options)
    set_here = {"XLA_FLAGS", "LIBTPU_INIT_ARGS"} & environment.keys()
    assert set_here == ({variable} if variable else set())
    assert len(options.remarks) == len(set_here)
    assert ("JAX_COMPILATION_CACHE_DIR" in environment) == (command[0] != "plan")


def test_xla_takes_the_flags_for_gpus() -> None:
    """Its parser is the same in a jaxlib for CPUs; it aborts the process over a flag that it does not know."""
    assert known_flags(FLAGS["gpu"], xla_flags.parsers("gpu")) == FLAGS["gpu"]
    program = "import jax; jax.devices()"
    environment = os.environ | {"XLA_FLAGS": " ".join(FLAGS["gpu"])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
