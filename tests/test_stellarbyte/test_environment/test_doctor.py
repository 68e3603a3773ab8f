"""Each check of `stellarbyte doctor` finds what it is for; and the command's exit code and text."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from stellarbyte import door
from stellarbyte.environment import doctor, versions
from stellarbyte.environment.caches import Cache
from stellarbyte.environment.checks import disk, imports, installation, libraries, runs, shell
from stellarbyte.environment.finding import Finding, well
from stellarbyte.folder_lock import folder_lock

Patch = pytest.MonkeyPatch


def told(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.words, finding.mend) for finding in findings]


@pytest.fixture
def distributions(monkeypatch: Patch) -> Callable[..., None]:
    """Makes these the only distributions that are installed: name -> (version, its requirements)."""

    def give(**there: tuple[str, list[str]]) -> None:
        def find(name: str) -> tuple[str, list[str]]:
            key = name.replace("-", "_").lower()
            if key not in there:
                raise metadata.PackageNotFoundError(name)
            return there[key]

        monkeypatch.setattr(metadata, "version", lambda name: find(name)[0])
        monkeypatch.setattr(metadata, "requires", lambda name: find(name)[1])
        monkeypatch.setattr(libraries, "package_folder", lambda: Path("/nowhere/stellarbyte"))

    return give


OURS = ["numpy>=2.0", 'jax<0.13,>=0.10; extra == "jax"', 'flax>=0.12; extra == "jax"', 'pypdf>=6; extra == "memory"']


def test_libraries(distributions: Callable[..., None]) -> None:
    jax = ("0.12.0", ["jaxlib<=0.12.0,>=0.12.0", 'libtpu; extra == "tpu"'])
    sound = {"stellarbyte": ("1", OURS), "numpy": ("2.1", []), "jax": jax, "jaxlib": ("0.12.0", [])}
    distributions(**sound, flax=("0.12.1", ["jax>=0.11"]))
    assert told(libraries.check_libraries()) == [("well", "every version is within its bounds; extras: jax", "")]

    distributions(**sound | {"numpy": ("1.26", [])}, flax=("0.12.1", []))
    words = "numpy 1.26 is installed, but StellarByte needs >=2.0"
    assert told(libraries.check_libraries()) == [("wrong", words, "pip install 'numpy>=2.0'")]

    distributions(**sound)
    words = "flax is missing, which stellarbyte[jax] needs"
    assert told(libraries.check_libraries()) == [("wrong", words, "pip install 'flax>=0.12'")]

    distributions(**sound | {"jaxlib": ("0.11.0", [])}, flax=("0.12.1", []))
    words = "jaxlib 0.11.0 is installed, but jax 0.12.0 needs <=0.12.0,>=0.12.0"
    assert told(libraries.check_libraries()) == [("wrong", words, "pip install 'jaxlib<=0.12.0,>=0.12.0'")]

    distributions(stellarbyte=("1", OURS), numpy=("2.1", ["gone"]))
    assert [finding.words for finding in libraries.check_libraries()] == ["gone is missing, which numpy 2.1 needs"]

    distributions()
    (finding,) = libraries.check_libraries()
    assert finding.level == "wrong" and finding.mend == "pip install -e /nowhere"


def test_sources_that_ask_for_more_than_was_installed(
    tmp_path: Path, distributions: Callable[..., None], monkeypatch: Patch
) -> None:
    distributions(stellarbyte=("1", ["numpy>=2.0"]), numpy=("2.1", []))
    monkeypatch.setattr(libraries, "package_folder", lambda: tmp_path / "stellarbyte")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "stellarbyte"\ndependencies = ["numpy>=2.0"]\n')
    assert libraries.check_libraries()[0].level == "well"
    project.write_text('[project]\nname = "stellarbyte"\ndependencies = ["numpy>=2.1"]\n')
    (finding,) = libraries.check_libraries()
    assert finding.level == "note" and finding.mend == f"pip install -e {tmp_path}"


def test_imports(tmp_path: Path, distributions: Callable[..., None]) -> None:
    """Of four libraries one is sound, one raises, one crashes and one ends Python; each is told by itself."""
    contents = {"sound": "", "raises": "raise OSError('libx.so\\nmore')", "quits": "import sys; sys.exit(0)"}
    contents["crashes"] = "import os; os.kill(os.getpid(), 11)"
    for name, code in contents.items():
        (tmp_path / f"{name}.py").write_text(code)
    distributions(stellarbyte=("1", ["crashes", "raises", "quits", "sound"]), **{n: ("3", []) for n in contents})
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    assert told(imports.check_imports(environment)) == [
        (
            "wrong",
            "crashes cannot be imported: it was ended by SIGSEGV",
            "pip install --force-reinstall --no-deps crashes==3",
        ),
        (
            "wrong",
            "raises cannot be imported: OSError: libx.so",
            "pip install --force-reinstall --no-deps raises==3",
        ),
        (
            "wrong",
            "quits cannot be imported: it ended Python",
            "pip install --force-reinstall --no-deps quits==3",
        ),
    ]


def test_the_modules_of_our_libraries() -> None:
    """Those that are installed here; a name that is wrong would make a sound installation wrong."""
    from importlib.util import find_spec

    for extra, listed in versions.requirements().items():
        for requirement in listed:
            if extra != versions.DEVELOPMENT and versions.installed(requirement.name) is not None:
                assert find_spec(imports.module_of(requirement.name).partition(".")[0]), requirement.name


def test_python_and_its_environment(tmp_path: Path, monkeypatch: Patch) -> None:
    assert installation.check_python()[0].level == "well"
    monkeypatch.setattr(sys, "version", "3.9.1 (main)")
    (finding,) = installation.check_python()
    assert finding.level == "wrong" and "Python 3.9.1 runs, but StellarByte needs >=3.11" in finding.words

    assert installation.check_environment({})[0].level == ("note" if sys.prefix == sys.base_prefix else "well")
    (finding,) = installation.check_environment({"VIRTUAL_ENV": str(tmp_path)})
    assert finding.level == "wrong" and f"{tmp_path} is activated" in finding.words
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    (finding,) = installation.check_environment({})
    assert finding.level == "note" and "python3 -m venv" in finding.mend


def test_programs_on_the_path(tmp_path: Path, monkeypatch: Patch) -> None:
    folders = [tmp_path / name for name in ("own", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "stellarbyte").write_text(f"#!/bin/sh\n# {folder}\n")
        (folder / "stellarbyte").chmod(0o755)
    own, other = folders
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(own))

    def level(path: str) -> tuple[str, str]:
        (finding,) = installation.check_programs({"PATH": path})
        return finding.level, finding.words

    assert level(f"{own}")[0] == "well"
    assert level(f"{own}:{own}")[0] == "well"
    assert level(f"{own}:{other}") == (
        "note",
        f"`stellarbyte` is {own}/stellarbyte; others are on PATH behind it: {other}/stellarbyte",
    )
    assert level(f"{other}:{own}")[0] == "wrong"
    assert level(f"{tmp_path}")[0] == "note"


def test_a_package_that_is_not_the_installed_one(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "stellarbyte").mkdir()
    (tmp_path / "stellarbyte" / "__init__.py").touch()
    facts = tmp_path / "stellarbyte-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Name: stellarbyte\nVersion: 0.1.0\n")
    (facts / "RECORD").write_text("stellarbyte/__init__.py,,\n")
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(facts))
    (finding,) = installation.check_source()
    assert finding.level == "wrong" and f"what is installed is {tmp_path}/stellarbyte" in finding.words
    monkeypatch.setattr(installation, "package_folder", lambda: tmp_path / "stellarbyte")
    assert installation.check_source()[0].level == "well"


def test_disks(tmp_path: Path, monkeypatch: Patch) -> None:
    cache = Cache("x", tmp_path / "cache", "X_DIR", "pretrain")
    assert disk.check_space([cache])[0].level == "well"
    full = shutil._ntuple_diskusage(10**12, 10**12, 10**6)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    findings = disk.check_space([cache])
    assert {finding.level for finding in findings} == {"wrong"} and "has 1.0 MB left of 1.0 TB" in findings[0].words
    (finding,) = disk.check_shared_memory(tmp_path)
    assert finding.level == "wrong" and "--shm-size" in finding.mend


def test_caches_that_cannot_be_written(tmp_path: Path, monkeypatch: Patch) -> None:
    cache = Cache("compiled programs", tmp_path / "a" / "b", "X_DIR", "pretrain")
    assert disk.check_caches([cache])[0].level == "well"
    monkeypatch.setattr("os.access", lambda *_: False)
    (finding,) = disk.check_caches([cache])
    assert finding.level == "wrong" and finding.mend == "export X_DIR=/a/folder/of/yours"
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("a file")
    (finding,) = disk.check_caches([cache])
    assert finding.level == "wrong" and "is no folder" in finding.words


def test_text_and_clock(tmp_path: Path) -> None:
    assert shell.check_text("UTF-8", "utf8")[0].level == "well"
    assert "the locale is ISO-8859-1, not UTF-8" in shell.check_text("ISO-8859-1", "utf-8")[0].words
    assert "standard output is ascii, not UTF-8" in shell.check_text("UTF-8", "ascii")[0].words
    assert shell.check_clock()[0].level == "well"
    assert shell.check_clock(86400.0)[0].level == "wrong", "the second of January 1970"
    if sys.platform == "linux":
        import time

        (finding,) = shell.check_clock(time.time() + 3600, tmp_path)
        assert finding.level == "note" and "behind this host's clock" in finding.words


def test_what_killed_commands_have_left(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "small"
    (run / "checkpoints" / "20.orbax-checkpoint-tmp-7").mkdir(parents=True)
    (run / "checkpoints" / "10").mkdir()
    (tmp_path / ".hf.partial").mkdir()
    lock = run.with_name(".small.lock")
    lock.write_text(json.dumps({"pid": 4711, "host": socket.gethostname(), "boot": "another"}))
    words = [finding.words for finding in runs.check_runs(tmp_path)]
    assert len(words) == 3 and "hf.partial was being made" in words[0] and "process 4711" in words[1]
    assert "20.orbax-checkpoint-tmp-7 is a checkpoint that was not finished" in words[2]
    lock.unlink()
    with folder_lock(run, "pretrain"), folder_lock(tmp_path / "hf", "export"):
        assert runs.check_runs(tmp_path)[0].level == "well", "a command is at work"


def test_the_command(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [*well("python", "3.12"), Finding("disk", "note", "is \x1b[31mread-only"), Finding("text", "well", "x")]
    monkeypatch.setattr(doctor, "examine", lambda *_: findings)
    assert door.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "nothing is wrong" and "\\x1b[31m" in said and "\x1b" not in said
    findings.append(Finding("libraries", "wrong", "flax is missing", "pip install flax"))
    assert door.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["well"] is False
    assert door.main(["doctor"]) == 1
    assert "pip install flax\n\none thing is wrong\n" in capsys.readouterr().out


@pytest.mark.long
def test_this_installation_is_well() -> None:
    import os

    wrong = [finding for finding in doctor.examine(os.environ) if finding.level == "wrong"]
    assert not wrong
