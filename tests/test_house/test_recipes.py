"""What is shipped fits the machine that it is for, by our own planner: configs/run and the commands of docs/pods.md."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from stellarbyte.door import build_parser
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import load_run_config, run_config_from_dict, to_dict
from stellarbyte_jax.planning.plan import Plan, make_plan
from stellarbyte_jax.planning.topology import parse_topology
from test_house.test_pods import MANIFESTS, SCRIPTS, commands

ROOT = Path(__file__).parents[2]
RECIPES = {
    path.name: re.findall(r"--topology (\w+:\w+)", path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "configs" / "run").glob("*.yaml"))
}
# What is made for the machine that reads it, a laptop as well.
SMALL = {"chat.yaml", "lora.yaml", "plays_en.yaml", "poems_zh.yaml", "quickstart.yaml"}


@functools.cache
def plan(config_json: str, topology: str) -> Plan:
    config = run_config_from_dict(json.loads(config_json), "the recipe")
    return make_plan(config, parse_topology(topology, config.mesh.slices))


def fits(config: RunConfig, topology: str) -> bool:
    """With a tenth to spare, which the prediction may be off by."""
    found = plan(json.dumps(to_dict(dataclasses.replace(config, output_dir="anywhere"))), topology)
    return found.memory.total <= 0.9 * found.topology.chip.hbm_bytes


def test_each_large_recipe_names_its_machine() -> None:
    assert {name for name, machines in RECIPES.items() if not machines} == SMALL


# Planning takes a second or two a recipe: these are the ones that people start with.
FIRST = {("125m.yaml", "h100:1x1"), ("1b.yaml", "v5e:4x4"), ("7b.yaml", "h100:8x4")}


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        pytest.param(name, machine, marks=() if (name, machine) in FIRST else pytest.mark.long)
        for name, machines in RECIPES.items()
        for machine in machines
    ],
)
def test_a_recipe_fits_its_machine(name: str, topology: str) -> None:
    assert fits(load_run_config(ROOT / "configs" / "run" / name), topology)


def machine_of(text: str) -> str | None:
    """The topology that a script or manifest of the page asks a cluster for; None for the machine that one is at."""
    if chips := re.search(r"v5litepod-(\d+)", text):
        return {"16": "v5e:4x4"}[chips[1]]
    if "SBATCH" in text:
        nodes, gpus = (re.search(rf"--{name}=(\d+)", text)[1] for name in ("nodes", "gpus-per-node"))  # type: ignore[index]
        return f"h100:{gpus}x{nodes}"
    return None


@pytest.mark.long
def test_the_commands_of_the_page_fit_their_machines() -> None:
    asked = []
    for script in SCRIPTS:
        runs = [command for command in commands() if command[2] in script and " ".join(command[:2]) in script]
        asked += [(command, machine_of(script)) for command in runs]
    for manifest in (each for each in MANIFESTS if each["kind"] == "JobSet"):
        pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        selector = pod["nodeSelector"]
        assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
        asked.append((pod["containers"][0]["command"], f"v5e:{selector['cloud.google.com/gke-tpu-topology']}"))
    on_clusters = [(command, machine) for command, machine in asked if machine is not None]
    assert {machine for _, machine in on_clusters} == {"v5e:4x4", "h100:8x4"}
    for command, machine in on_clusters:
        options, overrides = build_parser().parse_known_args(command[1:])
        assert fits(load_run_config(ROOT / options.config, overrides), machine), command
    # "Several slices", which the page names as an option.
    assert fits(load_run_config(ROOT / "configs/run/1b.yaml", ["--mesh.slices", "2"]), "v5e:4x4")
