"""`stellarbyte env` tells all that it promises, as text and JSON, and nothing that is secret."""

import json
from pathlib import Path

import pytest

from stellarbyte import door
from stellarbyte.environment import accelerators, caches, environment, machine, variables
from stellarbyte.environment.accelerators import Accelerators
from stellarbyte.environment.children import Answer
from stellarbyte.environment.text import text
from stellarbyte.environment.versions import by_extra, versions

CPUS = {"backend": "cpu", "devices": [{"kind": "cpu", "memory_bytes": None}] * 8, "processes": 1}
TORCH = {"cuda": None, "hip": None, "cuda_usable": False, "cudnn": None, "devices": [], "threads": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Accelerators([], None, False, Answer(CPUS), Answer(error="ImportError: libcudart.so.12"), Answer())
    monkeypatch.setattr(accelerators, "accelerators", lambda _: found)


def test_text_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-word")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert door.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["base"]["numpy"] and found["libraries"]["jax"]["jax"]
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory_bytes"] > 10**8
    assert found["disks"][0]["path"] == "~" and found["disks"][0]["free_bytes"] > 0
    assert found["accelerators"]["jax"]["backend"] == "cpu" and found["accelerators"]["cluster"] is None
    assert door.main(["env"]) == 0
    said = capsys.readouterr().out
    for words in ("8 x cpu, backend cpu", "error: ImportError: libcudart.so.12", "HF_TOKEN", "cluster  ", "jax 0."):
        assert words in said, words
    assert "a-very-secret-word" not in said + json.dumps(found) and str(tmp_path) not in said


def test_what_the_text_says_of_devices() -> None:
    gpu = {"name": "NVIDIA H200", "driver": "550.1", "memory_mib": "143771"}
    seen = {"kind": "NVIDIA H200", "memory_bytes": 150 * 10**9, "capability": "9.0"}
    built = TORCH | {"cuda": "12.6", "cuda_usable": True, "devices": [seen, seen]}
    place = {"kind": "SlurmCluster", "processes": 4, "process_id": 2, "coordinator_address": "a:1"}
    found = environment.describe({})
    answers = Accelerators([gpu], "12.4", True, Answer(), Answer(built), Answer(place))
    said = text(found | {"accelerators": accelerators.told(answers)})
    for words in (
        "NVIDIA H200, 143771 MiB, driver 550.1",
        "2 x NVIDIA H200 of 150.0 GB, built for CUDA 12.6",
        "jax sees              not installed",
        "SlurmCluster, process 2 of 4",
        "none that matter",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("JAX_PLATFORMS", "cpu", "cpu"),
        ("WANDB_API_KEY", "0123", variables.MASKED),
        ("AWS_SECRET_ACCESS_KEY", "x", variables.MASKED),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json", variables.MASKED),
        ("HF_HOME", "hf_" + "a1B2" * 9, variables.MASKED),
        ("PIP_INDEX_URL", "https://me:word@host/simple", "https://***@host/simple"),
        ("HTTPS_PROXY", "http://token@proxy:3128", "http://***@proxy:3128"),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
        ("LD_LIBRARY_PATH", "/a:" * 300, "/a:" * 133 + "/…"),
        ("HF_TOKEN", "", ""),
    ],
)
def test_variables(name: str, value: str, shown: str) -> None:
    assert variables.relevant({name: value, "MY_DIARY": "private"}) == {name: shown}


def test_extras() -> None:
    lines = [
        "numpy>=2",
        'jax<0.13,>=0.10; extra == "jax"',
        'stellarbyte[jax]; extra == "tpu"',
        'x>1; sys_platform == "plan9" and extra == "tpu"',
    ]
    found = by_extra(lines)
    assert {extra: [str(each.specifier) for each in listed] for extra, listed in found.items()} == {
        "": [">=2"],
        "jax": ["<0.13,>=0.10"],
        "tpu": [],
    }
    assert list(versions()["tpu"]) == ["libtpu"], "what JAX's own extra brings"
    assert "dev" not in versions()


def test_caches_are_counted_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huggingface" / "hub").mkdir(parents=True)
    (tmp_path / "huggingface" / "hub" / "weights").write_bytes(b"x" * 5000)
    here = caches.caches({"XDG_CACHE_HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "elsewhere")})
    told = {each["name"]: each for each in caches.told(here)}
    assert told["Hugging Face"]["bytes"] == 5000 and told["Hugging Face"]["counted_whole"]
    assert told["uv"] == {
        "name": "uv",
        "path": str(tmp_path / "elsewhere"),
        "bytes": None,
        "counted_whole": True,
    }
    monkeypatch.setattr(caches, "_MOST_SECONDS", -1.0)
    assert not {each["name"]: each for each in caches.told(here)}["Hugging Face"]["counted_whole"]


def test_a_folder_that_is_not_there_is_told_by_the_one_above(tmp_path: Path) -> None:
    (told,) = machine.disks([("x", tmp_path / "a" / "b")])
    assert told["path"] == str(tmp_path)
