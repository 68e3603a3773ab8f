"""Stock models come into a run and go out of one: the same logits, the same bits, and no code of ours in between."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from convert import hf_checkpoint, hf_folder, layer_scale, run_checkpoint, weights
from convert.families import config_json, fit
from convert.families.registry import FAMILIES
from convert.families.tensors import to_stock
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig, RopeScaling
from stock_tokenizers import STOCK, TEXTS
from test_convert.jax_side import JaxModel
from test_convert.models import bits, sensible_params, tiny
from test_convert.parity import relative
from test_convert.stock import LENGTH, LENGTHS, ROPES, logits, save, stock_config, stock_model, tokens
from test_convert.torch_side import TorchModel
from tiers import short_tier

TOLERANCE = 1e-5
# Compiling takes seconds for each, so the long tier has the others.
IN_SHORT = {("llama", "llama3")}
EXPORTED = [name for name, family in FAMILIES.items() if family.not_exported is None]

# A model of ours for each family, with the switches that the family has.
OURS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "layer_scale_init": 0.1},
    "mistral": {"sliding_window": 5, "layer_scale_init": 0.1, "tie_word_embeddings": True},
    "qwen3": {"qk_norm": True, "sliding_window": 5, "attention_bias": True},
    "mixtral": {"num_experts": 3, "moe_intermediate_size": 16, "sliding_window": 5, "layer_scale_init": 0.1},
    "qwen3_moe": {"num_experts": 5, "moe_intermediate_size": 8, "qk_norm": True, "norm_topk_prob": False},
}
SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", 2.5),
    "dynamic": RopeScaling("dynamic", 3.0),
    "yarn": RopeScaling("yarn", 4.0, original_max_position_embeddings=16, beta_fast=4.0, attention_factor=1.5),
    "llama3": RopeScaling(
        "llama3", 8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0
    ),
}


def ours(family: str, rope: str = "default", **fields: Any) -> ByteConfig:
    shape = {"vocab_size": 300, "max_position_embeddings": 48, "position_embedding": "rope"}
    return tiny(**{**shape, **OURS[family], "rope_scaling": SCALINGS[rope], "rope_theta": 500.0, **fields})


def import_stock(folder: Path) -> tuple[ByteConfig, weights.Params]:
    model = hf_folder.read(folder)
    return model.config, weights.from_hf(model.tensors, model.config, "float32")


def batch(ids: np.ndarray) -> dict[str, np.ndarray]:
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return {"input_ids": ids, "position_ids": positions, "segment_ids": np.ones_like(ids)}


def our_logits(config: ByteConfig, params: weights.Params, ids: np.ndarray) -> np.ndarray:
    """By our class in PyTorch, which other tests hold equal to JAX."""
    return logits(TorchModel(config, params).model, ids)


@pytest.fixture(scope="session")
def stock_of(tokenizer, tmp_path_factory):
    """The model of a family with some rope, and its folder; nobody may change it."""
    made: dict[tuple[str, str], Any] = {}

    def get(family: str, rope: str = "default"):
        if (family, rope) not in made:
            model = stock_model(family, rope)
            made[family, rope] = model, save(model, tokenizer, tmp_path_factory.mktemp(f"{family}_{rope}") / family)
        return made[family, rope]

    return get


# In: from a stock folder into a run.


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_model_computes_what_the_stock_one_does(stock_of, family: str, rope: str) -> None:
    model, folder = stock_of(family, rope)
    ids = tokens(LENGTHS.get(rope, LENGTH))
    assert relative(our_logits(*import_stock(folder), ids), logits(model, ids)) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        pytest.param(family, rope, marks=() if (family, rope) in IN_SHORT else pytest.mark.long)
        for family in FAMILIES
        for rope in ROPES
    ],
)
def test_jax_computes_what_the_stock_model_does_and_gives_it_back(stock_of, tmp_path, family: str, rope: str) -> None:
    """Both ways with one program of JAX's; Qwen2 goes back as the Llama that it is by then."""
    model, folder = stock_of(family, rope)
    hf_checkpoint.from_hf(folder, tmp_path / "run")
    run = run_checkpoint.load(tmp_path / "run")
    ids = tokens(LENGTHS.get(rope, LENGTH))
    in_jax = JaxModel(run.config, run.params).logits(batch(ids))
    assert relative(in_jax, logits(model, ids)) < TOLERANCE
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", family="llama" if family == "qwen2" else family)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert relative(in_jax, logits(again, ids)) < TOLERANCE
    if family != "qwen2":
        before, after = model.state_dict(), again.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert again.config.rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_ties_and_every_dtype_are_imported(tokenizer, tmp_path, family: str) -> None:
    model = stock_model(family, tie_word_embeddings=True).to(torch.bfloat16)
    folder = save(model, tokenizer, tmp_path / "hf", max_shard_size="10KB")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert len(list(folder.glob("*.safetensors"))) > 2
    config, params = import_stock(folder)
    assert config.tie_word_embeddings
    assert relative(our_logits(config, params, tokens(LENGTH)), logits(model, tokens(LENGTH))) < TOLERANCE


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_that_were_left_together_are_imported(stock_of, tokenizer, tmp_path, family: str) -> None:
    model, folder = stock_of(family)
    assert any(".experts.0." in key for key in load_file(folder / "model.safetensors"))
    together = save(model, tokenizer, tmp_path / "hf", save_original_format=False)
    assert not any(".experts.0." in key for key in load_file(together / "model.safetensors"))
    assert bits(import_stock(together)[1]) == bits(import_stock(folder)[1])


def test_the_frequencies_in_old_files_are_passed_over(stock_of, tokenizer, tmp_path) -> None:
    model, folder = stock_of("llama")
    copy = save(model, tokenizer, tmp_path / "hf")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert bits(import_stock(copy)[1]) == bits(import_stock(folder)[1])


@pytest.mark.parametrize(
    ("family", "key", "complaint"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight", "lacks model.layers.1.block_sparse_moe.ex"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias", "lacks model.layers.0.self_attn.q_proj.bias of shape [32]"),
    ],
)
def test_a_missing_tensor_is_named_as_its_file_names_it(stock_of, tokenizer, tmp_path, family, key, complaint) -> None:
    folder = save(stock_of(family)[0], tokenizer, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as refusal:
        import_stock(folder)
    assert complaint in str(refusal.value)


TOKENIZERS = [("llama", "llama-3"), ("qwen3", "qwen-2"), ("llama", "llama-2"), ("mistral", "mistral")]


@pytest.mark.parametrize(("family", "name"), short_tier(TOKENIZERS, 1))
def test_the_tokenizer_comes_in_and_goes_out_as_it_is(tmp_path, family: str, name: str) -> None:
    model = stock_model(family, vocab_size=640)
    model.save_pretrained(tmp_path / "stock")
    STOCK[name](tmp_path / "stock")
    hf_checkpoint.from_hf(tmp_path / "stock", tmp_path / "run")
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", family=family)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "stock")
    again = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    config = run_checkpoint.load(tmp_path / "run").config
    assert config.eos_token_id == theirs.eos_token_id
    assert config.bos_token_id == (theirs.eos_token_id if theirs.bos_token_id is None else theirs.bos_token_id)


# Out: from a run to a stock folder.


@pytest.mark.parametrize("rope", SCALINGS)
@pytest.mark.parametrize("family", EXPORTED)
def test_an_exported_model_computes_what_ours_does(family: str, rope: str) -> None:
    config = ours(family, rope)
    params, ids = sensible_params(config), tokens(LENGTHS.get(rope, LENGTH))
    stock = _as_stock(family, config, params)
    assert relative(logits(stock, ids), our_logits(config, params, ids)) < TOLERANCE


PRUNED = {
    "a head of each group": {"num_attention_heads": 4, "pruned_heads": ((0, 3), (1, 2))},
    "a group": {"num_attention_heads": 4, "pruned_heads": ((0, 1), (2, 3))},
}


@pytest.mark.parametrize("pruned", PRUNED)
def test_pruned_heads_go_where_the_shapes_allow_it(pruned: str) -> None:
    config = ours("llama", **PRUNED[pruned])
    params = sensible_params(config)
    stock = _as_stock("llama", config, params)
    assert stock.config.num_attention_heads == 2
    ids = tokens(LENGTH)
    assert relative(logits(stock, ids), our_logits(config, params, ids)) < TOLERANCE


def _as_stock(family: str, config: ByteConfig, params: weights.Params) -> Any:
    fit.check_fits(FAMILIES[family], config, "the model")
    fold = layer_scale.to_hf_folded if config.layer_scale_init is not None else weights.to_hf
    fields = config_json.to_hf(FAMILIES[family], fit.exported(config), "float32")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    state = {key: torch.tensor(np.asarray(tensor)) for key, tensor in fold(params, config, "float32").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)  # modules have experts together, as ours do
    assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
    return model


@pytest.mark.parametrize("family", short_tier(EXPORTED, EXPORTED.index("qwen3_moe")))
def test_law_4_an_export_gives_the_run_back_bit_for_bit(tokenizer, tmp_path, family: str) -> None:
    no_z_loss = {"router_z_loss_coef": 0.0} if "num_experts" in OURS[family] else {}  # stock models have none
    config = ours(family, "yarn", layer_scale_init=None, **no_z_loss)
    params = sensible_params(config)
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(params, config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", family=family, max_shard_size="20KB")
    hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "again")
    again = run_checkpoint.load(tmp_path / "again")
    assert bits(again.params) == bits(params)
    assert again.tokenizer_files == tokenizer.files
    wide = {"intermediate_size": config.moe_intermediate_size} if family == "mixtral" else {}
    assert again.config == replace(config, **wide)


@pytest.mark.parametrize("rope", SCALINGS)
@pytest.mark.parametrize("family", EXPORTED)
def test_config_json_is_the_familys_own(family: str, rope: str) -> None:
    fields = config_json.to_hf(FAMILIES[family], fit.exported(ours(family, rope)), "float32")
    theirs = AutoConfig.for_model(**fields)
    own = {*stock_config(family).to_dict(), "head_dim", *theirs.attribute_map}  # Qwen3MoeConfig has no field head_dim
    # Transformers 4 looks for these two, and Transformers 5 moves them into rope_parameters.
    assert fields.keys() - own == {"rope_theta"} | ({"rope_scaling"} if rope != "default" else set())
    for name in fields.keys() & own - {"dtype"}:
        assert getattr(theirs, name) == fields[name], name
    older = {name: value for name, value in fields.items() if name != "rope_parameters"}
    assert AutoConfig.for_model(**older).rope_parameters == theirs.rope_parameters


def test_an_export_holds_nothing_of_ours_but_the_manifest(tokenizer, tmp_path) -> None:
    run_checkpoint.save(
        tmp_path / "run", RunCheckpoint(sensible_params(ours("llama")), ours("llama"), tokenizer.files, step=0)
    )
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", family="llama")
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert "stellarbyte_export.json" in names and not any(name.endswith(".py") for name in names)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "LlamaForCausalLM" in card and "trust_remote_code" not in card and "custom_code" not in card
    assert json.loads((tmp_path / "hf" / "stellarbyte_export.json").read_text())["family"] == "llama"


@pytest.mark.long
def test_exports_load_where_there_is_no_stellarbyte(tokenizer, tmp_path) -> None:
    ids = tokens(LENGTH)
    expected = {}
    for family in EXPORTED:
        config = ours(family, "llama3")
        params = sensible_params(config)
        run_checkpoint.save(tmp_path / f"{family}-run", RunCheckpoint(params, config, tokenizer.files, step=0))
        hf_checkpoint.to_hf(tmp_path / f"{family}-run", tmp_path / family, family=family)
        expected[family] = our_logits(config, params, ids)
    np.save(tmp_path / "ids.npy", ids)
    code = """
import sys, numpy, torch
sys.path = [path for path in sys.path if path not in ("", sys.argv[1])]
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stellarbyte", "stellarbyte_jax", "stellarbyte_torch", "convert", "jax"):
            raise ImportError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.from_numpy(numpy.load("ids.npy")).long()
for family in sys.argv[2:]:
    model, report = AutoModelForCausalLM.from_pretrained(family, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(family)
    text = "def star(byte): return byte * 2 # the star\\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    model.generate(**tokenizer("the star", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        numpy.save(f"{family}.npy", model(ids, use_cache=False).logits.numpy())
    print(type(model).__name__)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, root, *EXPORTED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [FAMILIES[family].architecture for family in EXPORTED]
    for family in EXPORTED:
        assert relative(np.load(tmp_path / f"{family}.npy"), expected[family]) < TOLERANCE
        text = "the star that was a byte: def star(byte): return byte * 2\n  床前 🌲"
        ids_of = AutoTokenizer.from_pretrained(tmp_path / family)(text)["input_ids"]
        assert ids_of == [tokenizer.bos_token_id, *tokenizer.encode(text)]


def test_experts_are_read_once_for_all() -> None:
    config = ours("mixtral", layer_scale_init=None)
    reads: list[str] = []
    tensors = {
        key: replace(tensor, read=lambda key=key, read=tensor.read: (reads.append(key), read())[1])
        for key, tensor in weights.to_hf(sensible_params(config), config).items()
    }
    for tensor in to_stock(tensors, FAMILIES["mixtral"]).values():
        np.asarray(tensor)
    assert sorted(reads) == sorted(tensors)
