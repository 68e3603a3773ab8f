"""What JAX sees is told as JSON can hold it."""

import json

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.processes.seen import cluster, devices


def test_devices() -> None:
    found = json.loads(json.dumps(devices()))
    assert found["backend"] == "cpu" and [each["kind"] for each in found["devices"]] == ["cpu"] * 8


def test_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster() is None
    for name, value in (
        ("SLURM_JOB_ID", "123456"),
        ("SLURM_STEP_NODELIST", "node7"),
        ("SLURM_PROCID", "2"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_NTASKS", "4"),
    ):
        monkeypatch.setenv(name, value)
    found = cluster()
    assert found is not None and found.pop("coordinator_address").startswith("node7:")
    assert found == {"kind": "SlurmCluster", "processes": 4, "process_id": 2}
    monkeypatch.setenv("SLURM_PROCID", "two")
    with pytest.raises(UserError, match=r"distributed\.detect"):
        cluster()
