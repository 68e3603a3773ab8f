"""What auto picks, where it is resolved, and what it says."""

import dataclasses
import json
import typing
from types import SimpleNamespace

import pytest

from stellarbyte.chips import CHIPS
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config import TrainingConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.planning import auto_remat
from stellarbyte_jax.planning.auto_remat import REMAT_POLICIES, choose, plan_policies, resolve_remat, with_remat
from stellarbyte_jax.planning.topology import Topology, parse_topology
from test_jax.test_planning.conftest import make_run

AUTO = {"remat": "auto", "batch_size": 4, "dtype": "bfloat16"}


FEW = ("none", "full", "dots")


@pytest.fixture(scope="module", autouse=True)
def _few_policies():
    """Enough to choose from; each takes a trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_remat, "REMAT_POLICIES", FEW)
        yield


@pytest.fixture(scope="module")
def plans():
    """Of four chips, under each policy."""
    return plan_policies(make_run(training=AUTO), parse_topology("v5e:2x2"))


def tpu(kind: str = "TPU v5 lite", shape: tuple[int, int] = (1, 1)) -> list[SimpleNamespace]:
    places = [(x, y, 0) for x in range(shape[0]) for y in range(shape[1])]
    return [SimpleNamespace(platform="tpu", device_kind=kind, coords=place, process_index=0) for place in places]


def holding(plan, hbm: float):  # type: ignore[no-untyped-def]
    """The plan, for a chip of so much memory."""
    chip = dataclasses.replace(plan.topology.chip, hbm_bytes=hbm)
    return dataclasses.replace(plan, topology=dataclasses.replace(plan.topology, chip=chip))


def test_every_policy_of_the_config_is_one():
    allowed = typing.get_args(typing.get_type_hints(TrainingConfig)["remat"])
    assert set(allowed) == {"auto", *REMAT_POLICIES}


def test_the_fastest_that_fits(plans):
    assert [plan.config.training.remat for plan in plans] == list(FEW)
    needs = sorted(plan.memory.total for plan in plans)
    for hbm in (2 * needs[-1], needs[-1], needs[2], needs[0] + 1):
        chosen = choose([holding(plan, hbm) for plan in plans])
        fitting = [plan for plan in plans if plan.memory.total <= 0.95 * hbm]
        if fitting:
            assert chosen.memory.total <= 0.95 * hbm
            assert chosen.roofline.step_seconds == min(plan.roofline.step_seconds for plan in fitting)
        else:
            assert chosen.memory.total == needs[0]


def test_resolving(planned_run, plans, monkeypatch):
    config = planned_run(training=AUTO)
    assert resolve_remat(with_remat(config, "dots"), tpu("TPU v9")).training.remat == "dots"
    assert resolve_remat(config, [SimpleNamespace(platform="cpu")]).training.remat == "none"
    chosen = choose(plans)
    assert resolve_remat(config, tpu(shape=(2, 2))) == chosen.config
    with pytest.raises(UserError, match=r"training.remat auto knows no chip named TPU v9: set it to none, full"):
        resolve_remat(config, tpu("TPU v9"))
    small = dataclasses.replace(CHIPS["v5e"], hbm_bytes=2**10)
    monkeypatch.setattr(auto_remat, "chip_of", lambda _: small)
    with pytest.raises(UserError, match=r"nothing fits v5e, .* comes nearest, .* GiB too much"):
        resolve_remat(config, tpu(shape=(2, 2)))


def test_gpus_are_wired_by_their_hosts():
    gpus = [SimpleNamespace(platform="gpu", process_index=index // 8) for index in range(16)]
    assert auto_remat._topology(CHIPS["h100"], gpus, 1) == Topology(CHIPS["h100"], (8, 2))
    assert auto_remat._topology(CHIPS["v5p"], tpu(shape=(4, 2)), 1).shape == (4, 2, 1)


def test_the_command_says_which_and_why(planned_run, plans, tmp_path, capsys):
    save_config(planned_run(training=AUTO), tmp_path / "run.yaml")
    command = ["plan", str(tmp_path / "run.yaml"), "--topology", "v5e:2x2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    chosen = choose(plans).config.training.remat
    assert f"training.remat auto: {chosen}, the fastest that fits" in text
    assert all(f"  {policy} " in text for policy in FEW)
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["remat"] == chosen
    assert [plan["remat"] for plan in found["remat_policies"]] == list(FEW)
    assert found["memory"] == choose(plans).to_dict()["memory"]


def test_pretraining_begins_with_a_policy(planned_run, tmp_path, monkeypatch):
    save_config(planned_run(training=AUTO), tmp_path / "run.yaml")
    seen = []
    monkeypatch.setattr(
        "stellarbyte_jax.training.pretrain.pretrain", lambda config, *_, **__: seen.append(config) or True
    )
    assert main(["pretrain", str(tmp_path / "run.yaml")]) == 0
    assert seen == [with_remat(planned_run(training=AUTO), "none")]
