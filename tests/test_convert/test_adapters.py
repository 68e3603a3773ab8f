"""Adapters cross over in both directions: the same bits, the same function, and a sentence where they cannot."""

import dataclasses
import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from convert import adapters, hf_checkpoint, run_checkpoint, weights
from stellarbyte.adapter_base import BASE_FILE, AdapterWarning
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import (
    Base,
    RunMetadata,
    fingerprint,
    load_metadata,
    load_params,
    save_imported,
)
from stellarbyte_jax.checkpoints.needed import needed_by
from stellarbyte_jax.config import LoRAConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.training.load import load_model
from stellarbyte_torch import ByteModel
from stellarbyte_torch import LoRAConfig as TorchLoRAConfig
from stellarbyte_torch.lora import apply_lora_to_model, load_lora
from test_convert.adapting import (
    drawn_adapters,
    jax_logits_and_gradients,
    peft_fields,
    peft_model,
    torch_logits_and_gradients,
)
from test_convert.models import bits, sensible_params, tiny
from test_convert.parity import batches, relative
from test_convert.test_hf_checkpoint import BLOCK
from tiers import short_tier

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MOE = {"num_experts": 4, "num_shared_experts": 2, "moe_intermediate_size": 8}

CASES = {
    "dense": (tiny(), LoRAConfig(("q_proj", "v_proj", "mlp.down_proj"), r=3, lora_alpha=5)),
    "all linear": (tiny(num_key_value_heads=1), LoRAConfig("all-linear", r=2, lora_alpha=2, use_rslora=True)),
    "biases, one layer": (tiny(attention_bias=True), LoRAConfig(ATTENTION, r=2, lora_alpha=3, layers="1")),
    "shared experts": (tiny(**MOE), LoRAConfig("all-linear", r=2)),
    "ranks of their own": (
        tiny(residual="deepnorm", num_hidden_layers=3),
        LoRAConfig(
            (*ATTENTION, "up_proj"), r=2, layers="0,2", rank_pattern={"v_proj": 5}, alpha_pattern={"mlp.up_proj": 1}
        ),
    ),
    "pruned heads": (tiny(pruned_heads=((1,), (0, 1))), LoRAConfig(ATTENTION, r=2)),
    "uneven": (tiny(intermediate_size=(9, 20)), LoRAConfig("all-linear", r=2)),
}


@pytest.mark.parametrize("case", short_tier(list(CASES), 3))
def test_both_sides_compute_the_same(case: str) -> None:
    config, lora = CASES[case]
    base, ours = sensible_params(config), drawn_adapters(config, lora)
    batch = batches(config)["packed"]
    (logits, gradients), (without, _) = jax_logits_and_gradients(config, lora, base, batch, ours, zeros(ours))
    tensors = adapters.to_peft_tensors(ours, config, lora)
    model = peft_model(config, base, peft_fields(config, lora), tensors)
    their_logits, their_gradients = torch_logits_and_gradients(model, batch)
    assert relative(logits, their_logits) < 1e-5
    named = adapters.to_peft_tensors(gradients, config, lora)
    assert named.keys() == their_gradients.keys()
    for key, gradient in named.items():
        assert relative(gradient, their_gradients[key]) < 1e-4, key
    assert relative(without, logits) > 0.05, "the adapters say something"
    if lora.layers is not None:
        gone = np.setdiff1d(range(config.num_hidden_layers), lora.layer_numbers(config.num_hidden_layers))
        assert all(not leaf[gone].any() for _, leaf in weights.flatten(gradients)), "layers without adapters stay so"


@pytest.mark.parametrize("case", CASES)
def test_law_4_there_and_back_every_bit_and_the_same_config(case: str) -> None:
    config, lora = CASES[case]
    ours = drawn_adapters(config, lora)
    tensors = adapters.to_peft_tensors(ours, config, lora)
    fields = peft_fields(config, lora)
    back, their_lora = adapters.from_peft_tensors(tensors, fields, config, "there")
    assert bits(back) == bits(ours)
    if isinstance(lora.target_modules, tuple):
        assert dataclasses.replace(their_lora, target_modules=lora.target_modules) == lora
        assert set(their_lora.target_modules) == set(lora.target_modules)
    again = adapters.to_peft_tensors(back, config, their_lora)
    assert {key: value.tobytes() for key, value in again.items()} == {k: v.tobytes() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def lora_run(run_dir, tmp_path_factory):
    """A run of adapters on `run_dir`; nobody may change it."""
    metadata, _ = load_metadata(run_dir)
    checkpoint = run_checkpoint.load(run_dir)
    lora = LoRAConfig(ATTENTION, r=2, lora_alpha=4, lora_dropout=0.1)
    path = tmp_path_factory.mktemp("lora") / "run"
    about = {"model": to_dict(checkpoint.config), "lora": to_dict(lora)}
    base = Base(str(run_dir), 0, fingerprint(run_dir, 0))
    save_imported(
        path, drawn_adapters(checkpoint.config, lora), RunMetadata(about, metadata.tokenizer_files, base=base)
    )
    return path


def test_stock_peft_loads_the_folder_and_ours_loads_peft_s(run_dir, lora_run, exported, tmp_path, capsys):
    folder = tmp_path / "adapter"
    command = ["convert", "adapter", "to-peft", str(lora_run), str(folder), "--base-model", str(exported)]
    assert main(command) == 0
    assert "step 0, 768 parameters, 0.0 MB of adapters" in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    model = peft.PeftModel.from_pretrained(base, folder)
    assert model.peft_config["default"].base_model_name_or_path == str(exported)
    ids = np.random.default_rng(0).integers(3, 300, (2, 11))
    with torch.no_grad():
        theirs = model.eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert relative(load_model(lora_run)[0](ids.astype(np.int32)).logits, theirs) < 1e-5

    model.save_pretrained(tmp_path / "saved by peft")
    command = [
        "convert",
        "adapter",
        "from-peft",
        str(tmp_path / "saved by peft"),
        str(tmp_path / "back"),
        "--base",
        str(run_dir),
    ]
    assert main(command) == 0
    assert bits(load_params(tmp_path / "back")[0]) == bits(load_params(lora_run)[0])
    ours, back = (load_metadata(path)[0] for path in (lora_run, tmp_path / "back"))
    assert back.base == ours.base
    assert back.config["lora"] | {"target_modules": None} == ours.config["lora"] | {"target_modules": None}
    assert sorted(back.config["lora"]["target_modules"]) == sorted(ours.config["lora"]["target_modules"])

    # Once more into the same folder, which is ours; but not over what the user has put there.
    assert main(["convert", "adapter", "to-peft", str(tmp_path / "back"), str(folder)]) == 0
    (folder / "notes.txt").write_text("mine")
    assert main(["convert", "adapter", "to-peft", str(lora_run), str(folder)]) == 2
    assert main(["convert", "adapter", "to-peft", str(lora_run), str(folder), "--force"]) == 0
    assert (folder / "notes.txt").exists()


def test_peft_s_other_ways_to_name_what_is_adapted():
    """A regular expression, and an alpha by one: then each module is named."""
    config = tiny()
    fields = {
        "target_modules": r".*1\..*\.(q|up)_proj", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
        "rank_pattern": {r"layers\.\d\.mlp.*": 3}, "alpha_pattern": {r".*self_attn\.q_proj": 7},
        "peft_type": "LORA",
    }  # fmt: skip
    base, batch = sensible_params(config), batches(config)["packed"]
    tensors = {key: np.random.default_rng(0).normal(0, 0.4, shape).astype(np.float32) for key, shape in {
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (2, 24),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": (32, 2),
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": (3, 24),
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight": (20, 3),
    }.items()}  # fmt: skip
    ours, lora = adapters.from_peft_tensors(tensors, fields, config, "there")
    assert lora == LoRAConfig(
        ("self_attn.q_proj", "mlp.up_proj"), r=2, lora_alpha=4, layers="1",
        rank_pattern={"mlp.up_proj": 3}, alpha_pattern={"self_attn.q_proj": 7},
    )  # fmt: skip
    theirs, _ = torch_logits_and_gradients(peft_model(config, base, fields, tensors), batch)
    assert relative(jax_logits_and_gradients(config, lora, base, batch, ours)[0][0], theirs) < 1e-5


OVERLAPPING = {
    "ranks": {"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 3, "self_attn.k_proj": 4, "k_proj": 5}},
    "alphas": {"alpha_pattern": {"self_attn.q_proj": 9, "q_proj": 2, "up_proj": 3, "mlp.up_proj": 3}},
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_overlapping_patterns_mean_the_same_in_any_order(name: str):
    """The first that fits counts, and PEFT sorts them when it saves."""
    config = tiny()
    lora = LoRAConfig((*ATTENTION, "up_proj"), r=2, lora_alpha=4, **OVERLAPPING[name])
    base, ours, batch = sensible_params(config), drawn_adapters(config, lora), batches(config)["packed"]
    tensors, fields = adapters.to_peft_tensors(ours, config, lora), peft_fields(config, lora)
    ((logits, _),) = jax_logits_and_gradients(config, lora, base, batch, ours)
    for turned in (False, True):
        for field in ("rank_pattern", "alpha_pattern"):
            fields[field] = {key: fields[field][key] for key in sorted(fields[field], reverse=turned)}
        theirs, _ = torch_logits_and_gradients(peft_model(config, base, fields, tensors), batch)
        assert relative(logits, theirs) < 1e-5
        back, their_lora = adapters.from_peft_tensors(tensors, fields, config, "there")
        assert bits(back) == bits(ours)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
            assert (their_lora.rank(module), their_lora.scaling(module)) == (lora.rank(module), lora.scaling(module))


def test_adapters_say_what_base_they_are_for(run_dir, lora_run, exported, tmp_path, capsys, recwarn):
    adapters.to_peft(lora_run, tmp_path / "adapter")
    load_lora(ByteModel.from_pretrained(exported), tmp_path / "adapter")
    adapters.from_peft(tmp_path / "adapter", tmp_path / "run", run_dir)
    assert str(tmp_path / "run") in needed_by(run_dir)[load_metadata(run_dir)[1]]
    path = tmp_path / "adapter" / BASE_FILE
    about = json.loads(path.read_text())
    about["config"]["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(about))
    command = [
        "convert",
        "adapter",
        "from-peft",
        str(tmp_path / "adapter"),
        str(tmp_path / "x"),
        "--base",
        str(run_dir),
    ]
    assert main(command) == 2
    assert "is for another base: its rms_norm_eps is 0.5, and this model's is" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is for another base: its rms_norm_eps is 0\.5"):
        load_lora(ByteModel.from_pretrained(exported), tmp_path / "adapter")
    assert not [warning for warning in recwarn if issubclass(warning.category, AdapterWarning)]
    path.unlink()
    assert main(command) == 0
    assert "note: the adapter in" in (said := capsys.readouterr().err) and "does not say what base it is for" in said


def test_what_our_own_torch_side_saves_comes_over(run_dir, exported, tmp_path):
    """Layers of all-linear are an expression of what PEFT is to leave out."""
    model = ByteModel.from_pretrained(exported)
    ours = TorchLoRAConfig(r=2, lora_alpha=6, target_modules="all-linear", layers="1", init_lora_weights=False)
    model = apply_lora_to_model(model, ours).eval()
    model.save_pretrained(tmp_path / "adapter")
    adapters.from_peft(tmp_path / "adapter", tmp_path / "run", run_dir)
    lora = load_metadata(tmp_path / "run")[0].config["lora"]
    assert (lora["layers"], lora["r"], lora["lora_alpha"], len(lora["target_modules"])) == ("1", 2, 6.0, 7)
    ids = np.random.default_rng(0).integers(3, 300, (2, 11))
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert relative(load_model(tmp_path / "run")[0](ids.astype(np.int32)).logits, theirs) < 1e-5


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without(tensors: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("fields", "change", "complaint"),
    [
        ({"use_dora": True}, None, "use_dora is true, which adapters in JAX cannot have: train without"),
        ({"modules_to_save": ["lm_head"]}, None, 'modules_to_save is ["lm_head"], which adapters in JAX cannot have'),
        ({"bias": "all"}, None, 'bias is "all", which adapters in JAX cannot have'),
        ({"target_parameters": ["experts.down_proj"]}, None, "target_parameters is"),
        ({"a_field_of_tomorrow": 3}, None, "a_field_of_tomorrow is 3, which adapters in JAX cannot have"),
        ({"peft_type": "NONLINEAR_LORA", "activation": "gelu"}, None, "peft_type is 'NONLINEAR_LORA', and JAX"),
        ({"peft_type": "IA3"}, None, "peft_type is 'IA3', and JAX holds LORA adapters alone"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights is 'pissa', which changes the base as well"),
        ({"r": 10**12}, None, "r is 1000000000000: a rank is a whole number, 1 or more, and 65536 at most"),
        ({"r": None}, None, "r is None: a rank is a whole number"),
        ({"lora_alpha": None}, None, "lora_alpha is None: an alpha is a number other than 0"),
        ({"lora_dropout": "x"}, None, "lora_dropout is 'x': choose a probability"),
        ({"use_rslora": "yes"}, None, "use_rslora is 'yes': write true or false"),
        ({"target_modules": ["nowhere"]}, None, "by its tensors and not by its fields, where target_modules is a list"),
        ({"target_modules": ["q_proj"]}, None, "by its tensors and not by its fields"),
        ({"target_modules": "all.*"}, None, "by its tensors and not by its fields, where target_modules is 'all.*'"),
        ({"target_modules": r".*\.layers\..*_proj"}, None, "by its fields and not by its tensors"),
        ({"target_modules": [1]}, None, "target_modules is a list: write a list of names, or one regular expression"),
        ({"target_modules": "(("}, None, "target_modules '((' is no regular expression"),
        ({"exclude_modules": ["q_proj"]}, None, "q_proj by its tensors and not by its fields"),
        ({"exclude_modules": "([a-z_.0-9]+)+!"}, None, "takes more than 1 second on the names of this model"),
        ({"layers_to_transform": [0]}, None, "adapts model.layers.1."),
        ({"layers_to_transform": ["x"]}, None, "layers_to_transform is a list: write layer numbers, such as [0, 1]"),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, None, "adapts model.layers.0."),
        ({"layers_to_transform": [0, 1], "layers_pattern": "blocks"}, None, "adapts model.layers.0."),
        ({"rank_pattern": [1]}, None, "rank_pattern is [1]: map names to numbers"),
        ({"rank_pattern": {"(": 3}}, None, "rank_pattern['('] '(' is no regular expression"),
        ({"alpha_pattern": {"([a-z_.0-9]+)+!": 3}}, None, "takes more than 1 second on the names of this model"),
        ({}, lambda t: t | {KEY: np.full((2, 24), np.nan, np.float32)}, "that are nan or infinite"),
        ({}, lambda t: t | {KEY: t[KEY].astype(np.int32)}, "as I32, expected one of float32"),
        ({"r": 3}, None, "self_attn.q_proj has rank 2, but r and rank_pattern say [3]"),
        ({"alpha_pattern": {"0.self_attn.q_proj": 9}}, None, "alpha_pattern gives self_attn.q_proj [4, 9] in"),
        ({}, lambda t: without(t, KEY), f"lacks {KEY} of shape [2, 24]"),
        ({}, lambda t: t | {KEY: np.zeros((2, 23), np.float32)}, f"holds {KEY} of shape [2, 23], but this config"),
        ({}, lambda t: t | {KEY.replace("A", "B"): np.zeros((31, 2), np.float32)}, "of shape [31, 2], but this config"),
        ({}, lambda t: t | {KEY.replace("0", "7"): t[KEY]}, "layers.7.self_attn.q_proj.lora_A.weight, which"),
        ({}, lambda t: t | {"base_model.model.lm_head.lora_A.weight": t[KEY]}, "lm_head.lora_A.weight, which"),
        ({}, lambda t: t | {KEY.replace("q_proj", "x_proj"): t[KEY]}, "x_proj.lora_A.weight, which adapters"),
        ({}, lambda t: without(t, KEY, KEY.replace("A", "B")), "but self_attn.q_proj in [1]"),
        ({}, lambda t: t | {KEY: t[KEY].astype(np.float64)}, "as F64, expected one of float32"),
        ({}, lambda _: {}, "holds no adapter at all"),
    ],
)  # fmt: skip
def test_what_jax_cannot_hold_is_one_sentence(fields, change, complaint, run_dir, lora_run, tmp_path, capsys):
    folder = tmp_path / "adapter"
    adapters.to_peft(lora_run, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if change is not None:
        save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    assert main(["convert", "adapter", "from-peft", str(folder), str(tmp_path / "run"), "--base", str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("value", "dtype", "complaint"),
    [(np.nan, "float32", "values that are nan or infinite: the model is broken"), (3, "int32", "as int32, expected")],
)
def test_adapters_of_no_numbers_of_ours_are_not_exported(lora_run, tmp_path, capsys, value, dtype, complaint):
    params, metadata, _ = load_params(lora_run)
    leaves = dict(weights.flatten(params))
    path = next(path for path in leaves if path[-1] == "lora_B")
    leaves[path] = np.full_like(leaves[path], value, dtype=dtype)
    save_imported(tmp_path / "run", weights.unflatten(leaves), metadata)
    assert main(["convert", "adapter", "to-peft", str(tmp_path / "run"), str(tmp_path / "adapter")]) == 2
    assert complaint in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"r": 3}, r"as lora_A of self_attn\.\w_proj, where its `lora` and its base have one of shape \[2, 24, 3\]"),
        ({"target_modules": ("q_proj",)}, r"an adapter of self_attn\.\w_proj, which its `lora` does not name"),
        ({"target_modules": (*ATTENTION, "up_proj")}, r"no adapter of mlp\.up_proj, which its `lora` names"),
        ({"target_modules": ("nowhere",)}, r"which its `lora` does not name"),
        ({"rank_pattern": {"v_proj": 1}}, r"as lora_A of self_attn\.v_proj"),
    ],
)
def test_a_run_whose_adapters_are_not_those_of_its_config_is_refused(lora_run, tmp_path, fields, complaint):
    params, metadata, _ = load_params(lora_run)
    lora = metadata.config["lora"] | json.loads(json.dumps(fields))
    config = metadata.config | {"lora": lora}
    save_imported(tmp_path / "run", params, dataclasses.replace(metadata, config=config))
    for read in (lambda: adapters.to_peft(tmp_path / "run", tmp_path / "x"), lambda: load_model(tmp_path / "run")):
        with pytest.raises(UserError, match=complaint):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_mistakes_in_the_folders_are_one_sentence(run_dir, lora_run, exported, tmp_path):
    with pytest.raises(UserError, match="holds a whole model and no adapters: export it with `stellarbyte convert"):
        adapters.to_peft(run_dir, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"^base_model '' names no model: leave it out"):
        adapters.to_peft(lora_run, tmp_path / "adapter", base_model="")
    adapters.to_peft(lora_run, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"--base .* is a Hugging Face folder: make a run of it with"):
        adapters.from_peft(tmp_path / "adapter", tmp_path / "run", exported)
    with pytest.raises(UserError, match=r"--base .* holds adapters itself"):
        adapters.from_peft(tmp_path / "adapter", tmp_path / "run", lora_run)
    with pytest.raises(UserError, match="exists already"):
        adapters.from_peft(tmp_path / "adapter", run_dir, run_dir)
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        adapters.from_peft(exported, tmp_path / "run", run_dir)


def test_exporting_needs_neither_torch_nor_peft_and_builds_no_model(lora_run, tmp_path, python):
    blocked = ["torch", "transformers", "huggingface_hub", "peft", "stellarbyte_jax.model", "flax", "optax"]
    code = BLOCK.format(blocked=blocked) + "from stellarbyte.door import main\nmain(sys.argv[1:])\n"
    python(code, tmp_path, "convert", "adapter", "to-peft", str(lora_run), str(tmp_path / "adapter"))
    adapters.to_peft(lora_run, tmp_path / "here")
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_to_hf_of_a_run_of_adapters_is_the_merged_model(lora_run, tmp_path):
    hf_checkpoint.to_hf(lora_run, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    ids = np.random.default_rng(0).integers(3, 300, (2, 11))
    with torch.no_grad():
        theirs = model.eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert relative(load_model(lora_run)[0](ids.astype(np.int32)).logits, theirs) < 1e-5


def zeros(tree):
    return {name: zeros(value) if isinstance(value, dict) else np.zeros_like(value) for name, value in tree.items()}
