"""Searching: what is offered fits, none is beaten by another, and the batch stays."""

import itertools

import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.planning import search as searching
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.search import _meshes, search
from stellarbyte_jax.planning.topology import parse_topology

TOPOLOGY = parse_topology("h100:2x1")


@pytest.fixture(autouse=True)
def _two_policies(monkeypatch):
    """Enough to choose from; each takes a trace."""
    monkeypatch.setattr(searching, "REMAT_POLICIES", ("none", "full"))


def test_what_is_offered(planned_run):
    config = planned_run(training={"batch_size": 8, "dtype": "bfloat16"})
    seen = []
    plans = search(config, TOPOLOGY, lambda done, total: seen.append((done, total)))
    assert plans
    assert seen[-1][0] == seen[-1][1] == len(seen)
    for fast, slow in itertools.pairwise(plans):
        assert fast.tokens_per_second >= slow.tokens_per_second
        assert fast.memory.total > slow.memory.total
    for plan in (plans[0], plans[-1]):
        assert plan.fits
        assert plan.config.training.batch_size == 8
        # It is no other plan than that of the config that it names.
        assert make_plan(plan.config, TOPOLOGY).to_dict() == plan.to_dict()


def test_experts_and_rows_are_shared_out(planned_run):
    """Experts where there are some, rows where there are fewer than chips; the batch divides over the rest."""
    config = planned_run(num_experts=2, training={"batch_size": 2})
    meshes = list(_meshes(config, 4))
    assert {mesh.expert for mesh in meshes} == {1, 2}
    assert {mesh.context for mesh in meshes} == {1, 2, 4}
    assert all(2 % (mesh.data * mesh.fsdp * mesh.expert) == 0 for mesh in meshes)
    assert {mesh.context for mesh in _meshes(config, 2)} == {1}
    assert {mesh.expert for mesh in _meshes(planned_run(training={"batch_size": 2}), 4)} == {1}


def test_nothing_fits(planned_run):
    config = planned_run(hidden_size=2**20, intermediate_size=2**12, head_dim=4, training={"batch_size": 2})
    with pytest.raises(UserError, match=r"nothing fits h100:2x1; --mesh.* comes nearest, .* GiB a chip too much"):
        search(config, TOPOLOGY)


def test_the_table(planned_run, tmp_path, capsys):
    save_config(planned_run(training={"batch_size": 2}), tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "h100:2x1", "--search"]) == 0
    title, head, *rows, first = capsys.readouterr().out.splitlines()
    assert title.startswith("h100:2x1: what fits")
    assert head.split()[:3] == ["GiB", "tokens/s", "MFU"]
    assert rows and all(len(row) <= 100 for row in rows)
    assert first.startswith("the first: --mesh.data") and "--training.remat" in first
