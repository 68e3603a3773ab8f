"""What `stellarbyte info` tells of a real run, and of its export."""

from pathlib import Path

from stellarbyte.info import info


def test_a_run_and_its_export_are_told_alike(run_dir: Path, exported: Path) -> None:
    run, export = info(run_dir), info(exported)
    assert run["kind"] == "pretraining run" and export["kind"] == "StellarByte model"
    assert run["model"] == export["model"] and export["parameters"] > 0
    assert export["step"] in run["checkpoints"]
