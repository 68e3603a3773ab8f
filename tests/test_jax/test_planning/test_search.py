"""Searching: what is offered fits, none is beaten by another, and the batch stays."""

import itertools

import pytest

from stellarbyte_jax.cli import main
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.search import REMAT_POLICIES, search
from stellarbyte_jax.planning.topology import parse_topology

TOPOLOGY = parse_topology("h100:2x1")


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


def test_policies_are_the_configs():
    assert {"none", "full"} < set(REMAT_POLICIES)


def test_nothing_fits(planned_run):
    config = planned_run(hidden_size=2**20, intermediate_size=2**12, head_dim=4, training={"batch_size": 2})
    with pytest.raises(UserError, match=r"nothing fits h100:2x1; --mesh.* comes nearest, .* GiB a chip too much"):
        search(config, TOPOLOGY)


def test_the_table(planned_run, tmp_path, capsys):
    save_config(planned_run(training={"batch_size": 2}), tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "h100:2x1", "--search"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("GiB a chip")
    assert all("--mesh.data" in row and "--training.remat" in row for row in rows)
