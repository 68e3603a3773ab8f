"""Plans, in words and numbers, and what is refused."""

import dataclasses
import json

import pytest

from stellarbyte.chips import CHIPS
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config import LoRAConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.planning.compile_ahead import Compiled, compile_ahead
from stellarbyte_jax.planning.hlo import Collective, ProgramReport
from stellarbyte_jax.planning.jaxprs import KERNEL, equations
from stellarbyte_jax.planning.one_device import _Device
from stellarbyte_jax.planning.parameters import ParameterCounter
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.program import layer_loops
from stellarbyte_jax.planning.report import compiled_text, here_text, plan_text
from stellarbyte_jax.planning.roofline import busiest_share
from stellarbyte_jax.planning.topology import Topology, mesh_sizes, parse_topology
from stellarbyte_jax.sharding import Layout, abstract_mesh
from tiers import short_tier

ONE_CHIP = parse_topology("v5e:1x1")
THREE_CHIPS = Topology(CHIPS["v5p"], (1, 1, 3))
FOUR_CHIPS = parse_topology("v5e:2x2")
REFERENCE = {"attention_kernel": "reference"}
LONG = {"length": 256, "training": REFERENCE}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8}


def test_parameters_and_moments_are_spread_by_fsdp(planned_run):
    """On GPUs, where nothing is padded: all matrices lie on fsdp, norms on each chip."""
    config = planned_run(mesh={"data": 1, "fsdp": 2})
    two, one = (make_plan(config, parse_topology("h100:2x1")), make_plan(planned_run(), parse_topology("h100:1x1")))
    norms = (2 * 2 + 1) * 16
    assert one.memory.parameters == 4 * one.parameters
    assert two.memory.parameters == 4 * ((one.parameters - norms) // 2 + norms)
    assert two.memory.optimizer == 2 * two.memory.parameters
    assert two.memory.activations == one.memory.activations // 2


@pytest.mark.parametrize("fsdp", [1, 2])
def test_each_optimizers_state_is_counted(fsdp, planned_run):
    """On GPUs, against the numbers of entries; with fsdp each chip holds its part."""
    config = planned_run(mesh={"data": 1, "fsdp": fsdp})
    counter, found = ParameterCounter(config.model), {}
    for optim in ("adamw", "lion", "adafactor", "muon"):
        changed = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, optim=optim))
        found[optim] = counter.local(changed, config.mesh.sizes, "gpu").optimizer // 4
    # Channels of the residual stream lie on fsdp; those of heads, of the feed-forward and of the vocabulary do not.
    D, F, V, N, K, L, norms = 16 // fsdp, 24, 40, 16, 8, 2, (2 * 2 + 1) * 16
    layers = L * D * (2 * N + 2 * K + 3 * F)
    assert found["lion"] == layers + 2 * V * D + norms
    assert found["adamw"] == 2 * found["lion"]
    assert found["muon"] == layers + 2 * (2 * V * D + norms)
    assert found["adafactor"] == L * (7 * D + 2 * N + 2 * K + 3 * F) + 2 * (V + D) + norms


def test_muons_work_is_counted(planned_run):
    """Five iterations of three products for every matrix; on a mesh each chip has whole matrices."""
    config = planned_run(mesh={"data": 1, "fsdp": 4})
    muon = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, optim="muon"))
    ours, adams = (make_plan(each, parse_topology("v5e:2x2")) for each in (muon, config))
    # Two layers of q and o, of k and v, and of gate, up and down: 4, 4 and 6 matrices for 4 chips.
    work = [(1, 16, 16), (1, 8, 16), (2, 16, 24)]
    busiest = sum(5 * n * (4 * few**2 * many + 2 * few**3) for n, few, many in work)
    assert ours.flops.executed - adams.flops.executed == 4 * busiest
    assert ours.flops.model == adams.flops.model and ours.roofline.compute > adams.roofline.compute


@pytest.mark.parametrize("experts", short_tier([{}, EXPERTS], 0), ids=["dense", "experts"])
def test_a_grid_of_weights_costs_no_flops(planned_run, experts):
    mesh, grid = {"data": 1, "fsdp": 2, "tensor": 2}, {"quantize": "w4", "quantize_group_size": 4}
    plain, ours = (
        make_plan(planned_run(mesh=mesh, training=training, **experts), parse_topology("v5e:2x2"))
        for training in ({}, grid)
    )
    assert ours.flops == plain.flops
    assert ours.roofline.compute == plain.roofline.compute


def test_the_parts_are_the_whole(planned_run):
    plan = make_plan(planned_run(training={"gradient_accumulation_steps": 2}), ONE_CHIP)
    memory = plan.memory
    assert memory.total == sum(memory.parts().values()) == memory.arguments + memory.temporaries
    assert memory.micro_batches == memory.parameters
    assert plan.tokens_per_second * plan.roofline.step_seconds == pytest.approx(8 * 128)
    assert 0 < plan.mfu < 1
    assert plan.fits


def test_what_binds(planned_run):
    assert make_plan(planned_run(), ONE_CHIP).binds == "HBM"
    far = planned_run(training={"batch_size": 64}, mesh={"data": 64}, vocab_size=320)
    assert make_plan(far, parse_topology("h100:1x64")).binds == "interconnect (mesh.data)"
    big = planned_run(training={"batch_size": 2**20})
    assert make_plan(big, ONE_CHIP).binds == "memory"


def test_experts_are_shared_out(planned_run):
    """On GPUs: half of the experts a chip, whose tokens cross over to them; all else as on one."""
    config = planned_run(num_experts=4, mesh={"data": 1, "expert": 2}, training=REFERENCE)
    two, one = (
        make_plan(config, parse_topology("h100:2x1")),
        make_plan(planned_run(num_experts=4, training=REFERENCE), parse_topology("h100:1x1")),
    )
    experts = 4 * 2 * 4 * 3 * config.model.hidden_size * config.model.moe_intermediate_size
    assert one.memory.parameters - two.memory.parameters == experts // 2
    assert two.received["expert"] > 4 * 4 * 128 * config.model.hidden_size
    assert two.memory.exchanged > 0 == one.memory.exchanged


def test_rows_are_shared_out(planned_run):
    """A context axis halves what layers keep of a row, spreads parameters as fsdp does, and gathers keys."""
    kept = {"length": 256, "training": {"batch_size": 2, "attention_kernel": "splash"}}
    two = make_plan(planned_run(mesh={"data": 1, "context": 2}, **kept), Topology(CHIPS["v5e"], (1, 2)))
    one = make_plan(planned_run(**kept), ONE_CHIP)
    assert two.memory.activations == pytest.approx(one.memory.activations / 2, rel=0.01)
    assert two.memory.parameters < one.memory.parameters
    assert two.received["context"] > 0
    # The second half of the queries sees three quarters of the pairs, unless halves of both are dealt out.
    shared = Layout(abstract_mesh({"context": 2}))
    assert busiest_share(planned_run(length=256), shared) == pytest.approx(1.5, rel=0.01)
    assert busiest_share(planned_run(length=512, max_position_embeddings=512), shared) == 1
    assert two.roofline.compute > one.roofline.compute / 2


def test_smaller_blocks_skip_more(planned_run):
    """Of a row of two blocks a quarter is skipped: 9 matmuls of so many pairs a head less."""
    small, large = (
        planned_run(length=256, training={"attention_kernel": "splash", "attention_block_size": size})
        for size in (128, 256)
    )
    model = small.model
    skipped = 9 * 2 * model.num_attention_heads * model.head_dim * model.num_hidden_layers * 8 * 128 * 128
    assert make_plan(large, ONE_CHIP).flops.executed - make_plan(small, ONE_CHIP).flops.executed == skipped
    for config, blocks in ((small, 2), (large, 1)):
        body = layer_loops(config, mesh_sizes(config.mesh, ONE_CHIP), 1, "tpu", "none").bodies[0]
        kernel = next(eqn for eqn, _ in equations(body) if eqn.primitive.name == KERNEL)
        assert kernel.params["grid_mapping"].grid[-2:] == (blocks, blocks)


def test_adapters_leave_their_base_frozen(planned_run):
    whole = make_plan(planned_run(), parse_topology("h100:1x1"))
    config = dataclasses.replace(planned_run(), init_from="base", lora=LoRAConfig(r=4, target_modules=("q_proj",)))
    adapted = make_plan(config, parse_topology("h100:1x1"))
    assert adapted.memory.frozen == whole.memory.parameters
    assert adapted.memory.parameters == 4 * 2 * 4 * (16 + 4 * 4)
    assert adapted.memory.optimizer == 2 * adapted.memory.parameters
    assert adapted.flops.model < adapted.flops.executed < whole.flops.executed


def test_cost(planned_run):
    plan = make_plan(planned_run(), ONE_CHIP)
    hours, dollars = plan.cost(plan.tokens_per_second * 7200, price=3.0)
    assert (hours, dollars) == (pytest.approx(2), pytest.approx(6))
    assert plan.cost(1e9, None)[1] == pytest.approx(plan.cost(1e9, CHIPS["v5e"].price)[1])
    assert make_plan(planned_run(), parse_topology("h100:1x1")).cost(1e9, None)[1] is None


@pytest.mark.parametrize(
    ("fields", "topology", "complaint"),
    [
        (
            {"training": {"batch_size": 6, **REFERENCE}},
            "v5e:2x2",
            "training.batch_size 6 makes micro-batches of 6 rows",
        ),
        ({"training": {"attention_kernel": "splash"}}, "h100:1x1", "splash is for TPUs"),
        ({"training": {"attention_kernel": "cudnn"}}, "v5e:1x1", "cudnn is for GPUs"),
        ({"num_experts": 3, "mesh": {"data": 2, "expert": 2}}, "v5e:2x2", "mesh.expert 2 does not divide .*experts"),
        ({"mesh": {"data": 1, "context": 4}}, "v5e:2x2", "multiple of 128 tokens on each of mesh.context's 4"),
        ({"mesh": {"data": 1, "context": 3}, **LONG}, THREE_CHIPS, "sequence_length 256 is not divisible by"),
        ({"length": 100}, "v5e:1x1", "multiple of 128 tokens"),
        ({"mesh": {"data": 1, "fsdp": 3}, "training": REFERENCE}, "v5e:2x2", "mesh .* needs 3 chips"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused(planned_run, fields, topology, complaint):
    with pytest.raises(UserError, match=complaint):
        make_plan(planned_run(**fields), parse_topology(topology) if isinstance(topology, str) else topology)


def test_slices(planned_run):
    """Two slices of 4 chips are 8, whose gradients meet over the network."""
    one = make_plan(planned_run(), parse_topology("v5e:2x4"))
    two = make_plan(planned_run(mesh={"slices": 2}), parse_topology("v5e:2x2", slices=2))
    assert two.memory == one.memory
    assert two.topology.size == 8
    assert two.roofline.interconnect["data"] > one.roofline.interconnect["data"]


def test_the_compilers_figures_stand_beside(planned_run):
    plan = make_plan(planned_run(), ONE_CHIP)
    report = ProgramReport({"all-gather": Collective(3, 2**30)}, cycles=2 * 10**9, kernels=4)
    text = compiled_text(plan, Compiled(plan.memory.arguments, 2 * plan.memory.temporaries, 5, report))
    assert "+0.0%" in text and "-50.0%" in text
    assert "all-gather                      3 times     1.000 GiB" in text
    assert "2.000 G, without 4 calls of Mosaic kernels" in text


def test_without_libtpu(planned_run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'stellarbyte\[tpu\]'"):
        compile_ahead(planned_run(), ONE_CHIP)
    with pytest.raises(UserError, match="--compile knows TPUs only"):
        compile_ahead(planned_run(), parse_topology("h100:1x1"))


def test_the_real_compiler_agrees(planned_run):
    pytest.importorskip("libtpu")
    config = planned_run(training={"batch_size": 16, **REFERENCE})
    compiled = compile_ahead(config, FOUR_CHIPS)
    assert make_plan(config, FOUR_CHIPS).memory.arguments == pytest.approx(compiled.arguments, rel=0.1)
    assert compiled.program.cycles > 0
    assert "all-reduce" in compiled.program.collectives


def test_the_command(planned_run, tmp_path, capsys):
    save_config(planned_run(), tmp_path / "run.yaml")
    command = ["plan", str(tmp_path / "run.yaml"), "--topology", "v5e:1x1", "--tokens", "300B"]
    assert main([*command, "--picture", str(tmp_path / "memory.svg"), "--training.batch_size", "4"]) == 0
    text = capsys.readouterr().out
    assert "4 rows of 128 tokens a step" in text and "3e+11 tokens: at least" in text and "fits" in text
    assert (tmp_path / "memory.svg").read_text().startswith("<svg")

    assert main([*command, "--json", "--price", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = make_plan(planned_run(), ONE_CHIP)
    assert found == json.loads(json.dumps(plan.to_dict(3e11, 2.0)))
    assert found["dollars"] == pytest.approx(2 * found["hours"])
    assert plan_text(plan)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--price=-1"], "--price -1.0 is no price"),
        (["--price", "nan"], "--price nan is no price"),
        (["--search", "--compile"], "leave --compile and --picture to a plan of one"),
    ],
)
def test_options_that_make_no_sense(planned_run, options, complaint, tmp_path, capsys):
    save_config(planned_run(), tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "v5e:1x1", *options]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--compile", "--search", "--tokens=3B", "--price=2", "--slices=1", "--picture=x.svg"]
)
def test_a_cpu_has_no_speed_to_tell(planned_run, option, tmp_path, capsys):
    save_config(planned_run(), tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "cpu", option]) == 2
    assert f"leave {option.partition('=')[0]} out" in capsys.readouterr().err


def test_a_cpus_memory_is_the_compilers(planned_run, tmp_path, capsys):
    """The arguments are the state and the batch to the byte; the temporaries hold gradients, and logits at least."""
    config = planned_run(training={"remat": "auto", "dtype": "float32"})
    save_config(config, tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory = _Device(config, "cpu").memory("none", 8)
    logits = 4 * 8 * 128 * config.model.vocab_size
    assert found["remat"] == "none"
    assert 0 <= found["arguments"] - memory.arguments < 100  # counters
    assert memory.parameters + logits < found["temporaries"] < 100 * (memory.parameters + logits)
    assert found["total"] == found["arguments"] + found["temporaries"]
    assert "fits" in here_text(found) and "too much" in here_text(found | {"machine": 1})


def test_a_cpu_is_one_device(planned_run, tmp_path, capsys):
    save_config(planned_run(mesh={"data": 1, "fsdp": 2}), tmp_path / "run.yaml")
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "cpu"]) == 2
    assert "needs 2 devices, but a CPU is 1" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["3x", "-1", "0", "B", "nan"])
def test_what_is_no_number_of_tokens(planned_run, tokens, tmp_path, capsys):
    save_config(planned_run(), tmp_path / "run.yaml")
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(tmp_path / "run.yaml"), "--topology", "v5e:1x1", f"--tokens={tokens}"])
    assert stop.value.code == 2
    assert f"argument --tokens: {tokens} is no number above 0" in capsys.readouterr().err
