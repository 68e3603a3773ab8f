import hashlib
import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

import stellarbyte_torch  # noqa: F401 - makes the Auto classes know the architecture
from convert import config as hf_config
from convert import hf_checkpoint, model_card, run_checkpoint, run_facts, shards, weights
from convert.run_checkpoint import RunCheckpoint
from convert.run_facts import RunFacts
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config import RopeScaling
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.manifest import SplitCounts
from test_convert.models import bits, finite, held, random_params, sensible_params, tiny
from test_convert.switches import grid

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "configuration_stellarbyte.py",
    "generation_config.json",
    "model.safetensors",
    "modeling_stellarbyte.py",
    "stellarbyte_export.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

# Runs before the code under test, in a Python where some packages do not exist.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ImportError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_holds_what_a_user_needs_and_nothing_else(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["hf"], "no half-written sibling may stay"
    assert {oct(path.stat().st_mode & 0o444) for path in exported.iterdir()} == {oct(0o444)}


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_transformers_loads_every_bit(run_dir, tmp_path, size):
    hf_checkpoint.to_hf(run_dir, tmp_path / "hf", max_shard_size=size)
    assert (tmp_path / "hf" / shards.INDEX).exists() == (size == "20KB")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    checkpoint = run_checkpoint.load(run_dir)
    expected = weights.to_hf(checkpoint.params, checkpoint.config)
    found = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(found[key].tobytes() == np.asarray(expected[key]).tobytes() for key in expected)
    assert model.generation_config.eos_token_id == 1
    assert model.config.dtype == torch.float32


def test_the_folder_alone_is_enough_for_transformers(exported, tmp_path, python, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(exported, tmp_path / "model")
    code = BLOCK.format(blocked=["stellarbyte_torch", "stellarbyte_jax", "convert", "jax", "flax"]) + (
        "import hashlib, json\n"
        "from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('model', trust_remote_code=True)\n"
        "backbone = AutoModel.from_pretrained('model', trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained('model', trust_remote_code=True)\n"
        "ids = tokenizer('<|SBOS|>the star', return_tensors='pt')\n"
        "out = model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()\n"
        "hashes = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in model.state_dict().items()}\n"
        "print(json.dumps([type(backbone).__name__, out, hashes]))\n"
    )
    name, generated, hashes = json.loads(python(code, tmp_path).splitlines()[-1])
    assert name == "ByteDecoder"
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert hashes == {key: _sha256(tensor) for key, tensor in model.state_dict().items()}
    inputs = AutoTokenizer.from_pretrained(exported)("<|SBOS|>the star", return_tensors="pt")
    assert generated == model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()


def _sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_exporting_needs_neither_torch_nor_jax_and_builds_no_model(run_dir, exported, tmp_path, python):
    blocked = ["torch", "transformers", "huggingface_hub", "peft", "stellarbyte_jax.model", "flax", "optax"]
    blocked += ["jax", "orbax"]
    code = BLOCK.format(blocked=blocked) + (
        "from stellarbyte.door import main\nsys.exit(main(['convert', 'to-hf', sys.argv[1], sys.argv[2]]))\n"
    )
    python(code, tmp_path, str(run_dir), str(tmp_path / "hf"))
    assert contents(tmp_path / "hf") == contents(exported)


def test_law_4_a_run_imported_from_its_export_is_the_same_run(run_dir, exported, tmp_path):
    hf_checkpoint.from_hf(exported, tmp_path / "run")
    before, after = run_checkpoint.load(run_dir), run_checkpoint.load(tmp_path / "run")
    assert bits(after.params) == bits(before.params)
    assert (after.config, after.tokenizer_files, after.step) == (before.config, before.tokenizer_files, 0)
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "again" / "hf")
    assert contents(tmp_path / "again" / "hf") == contents(exported)


def test_bfloat16_survives_the_way_through_a_float32_run(run_dir, tmp_path):
    hf_checkpoint.to_hf(run_dir, tmp_path / "a" / "hf", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "hf")
    assert model.dtype == torch.bfloat16
    assert model.model.rotary_emb.zeta.dtype == torch.float32
    hf_checkpoint.from_hf(tmp_path / "a" / "hf", tmp_path / "run")
    params = run_checkpoint.load(tmp_path / "run").params
    assert {str(leaf.dtype) for _, leaf in weights.flatten(params)} == {"float32"}
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "b" / "hf", dtype="bfloat16")
    assert contents(tmp_path / "a" / "hf") == contents(tmp_path / "b" / "hf")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True, "residual": "deepnorm", "position_embedding": "none"},
        {
            **{
                "num_experts": 3,
                "moe_intermediate_size": 8,
                "num_shared_experts": 1,
                "pruned_heads": ((1,), (2, 3)),
                "layer_scale_init": 0.1,
            },
            **{"position_embedding": "rope", "rope_scaling": RopeScaling("linear", 2.0), "attention_bias": True},
        },
    ],
    ids=["plain", "tied", "sparse"],
)
def test_what_transformers_saves_is_imported(tokenizer, tmp_path, fields):
    config = tiny(vocab_size=300, **fields)
    params = finite(random_params(config))
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(params, config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "saved")
    hf_checkpoint.from_hf(tmp_path / "saved", tmp_path / "back")
    back = run_checkpoint.load(tmp_path / "back")
    assert back.config == config
    assert bits(back.params) == bits(params)


def test_the_card_shows_the_figures_of_the_exported_step(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    records = [
        {"step": 0, "validation_loss": 5.5, "validation_bits_per_byte": 3.25},
        {"step": 1, "validation_loss": 0.125, "tokens": 7},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records) + '{"step": 0, "val'
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| Validation loss | 5.5000 |" in card
    assert "| Validation bits per byte | 3.2500 |" in card
    assert "0.1250" not in card, "measured after the step that was exported"
    front = card.split("---\n")[1]
    assert "library_name: transformers" in front
    assert "license" not in front
    assert not (tmp_path / "hf" / "training.png").exists()  # no step had been done


def test_the_card_tells_of_the_training(run_dir, tmp_path, monkeypatch):
    """What it learned from, by which settings, and a picture of how."""
    counts = SplitCounts(1_000_000, 2000, 3_500_000)
    identity = DataIdentity("text", "0" * 64, 0.1, 1000, 1, "0" * 64, None, {"train": counts}, None)
    config = {
        "data": {
            "sources": [{"path": "/home/me/corpus.jsonl", "weight": 0.3}, {"path": "plays"}],
            "sequence_length": 256,
        },
        "optimizer": {"optim": "muon", "learning_rate": 6e-3},
        "training": {"batch_size": 8},
    }
    read = run_facts.read_facts

    def with_config(*arguments, **options):
        from stellarbyte_jax.checkpoints import metadata

        stored = metadata.read_metadata(run_dir / "checkpoints" / "0")
        about = replace(stored.metadata, config=stored.metadata.config | config, data=identity)
        monkeypatch.setattr(metadata, "read_metadata", lambda _: stored._replace(metadata=about))
        return read(*arguments, **options)

    monkeypatch.setattr(run_facts, "read_facts", with_config)
    shutil.copytree(run_dir, tmp_path / "run")
    records = [{"step": 0, "loss": 5.0, "tokens": 2048, "validation_loss": 5.5}, {"step": 9, "loss": 1.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", license_id="apache-2.0")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| Sources | corpus.jsonl (weight 0.3), plays |" in card
    assert "/home" not in card
    assert "| Training split | 1,000,000 tokens, 2,000 documents, 3.5 MB of text |" in card
    assert "| Tokens seen | 2,048 |" in card
    assert "| Optimizer | muon |" in card and "| Learning rate | 0.006 |" in card and "| Rows of a batch | 8 |" in card
    assert "![The curves of the training](training.png)" in card
    assert (tmp_path / "hf" / "training.png").read_bytes().startswith(b"\x89PNG")
    about = {"format": "pt", "step": "0", "stellarbyte": version("stellarbyte")}
    assert read_metadata(tmp_path / "hf" / shards.WEIGHTS) == about
    assert "training.png" in json.loads((tmp_path / "hf" / "stellarbyte_export.json").read_text())["files"]


def read_metadata(path):
    with safe_open(path, "np") as file:
        return file.metadata()


def test_a_licence_that_is_none_is_refused(run_dir, tmp_path):
    with pytest.raises(UserError, match="--license 'my own' is no identifier"):
        hf_checkpoint.to_hf(run_dir, tmp_path / "hf", license_id="my own")


def test_the_card_describes_every_architecture(tokenizer):
    for config in grid().values():
        card = model_card.render("m", RunCheckpoint({}, config, tokenizer.files, step=7), "float32", 1000, RunFacts())
        assert f"{config.num_attention_heads} query heads" in card
        assert (f"{config.num_experts} experts, {config.num_experts_per_tok} for each token" in card) == bool(
            config.num_experts
        )
        assert ("DeepNorm" in card, "in parallel" in card) == (config.residual == "deepnorm", config.parallel_residual)
        assert ("a window of" in card, "pruned" in card) == (
            config.sliding_window is not None,
            bool(config.pruned_heads),
        )


def test_other_architectures_are_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="of type 'gpt2', expected 'stellarbyte' or one of llama, mistral"):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    LlamaConfig().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"holds no tokenizer.json: write it with AutoTokenizer.from_pretrained\("):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused(exported, run_dir):
    with pytest.raises(UserError, match="exists already: name a new run directory"):
        hf_checkpoint.from_hf(exported, run_dir)


def test_a_folder_without_tokenizer_or_with_too_large_a_one_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    (tmp_path / "tokenizer.json").rename(tmp_path / "hf" / "tokenizer.json")
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(UserError, match="vocab_size 100 is smaller than the"):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")


def test_weights_that_do_not_fit_the_config_are_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hf")
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"hf holds model\.layers\.1\."):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_run_and_no_step(run_dir, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        hf_checkpoint.to_hf(tmp_path / "none", tmp_path / "hf")
    with pytest.raises(UserError, match="no checkpoint of step 5"):
        hf_checkpoint.to_hf(run_dir, tmp_path / "hf", step=5)
    assert not (tmp_path / "hf").exists()


def test_exported_config_is_what_transformers_reads(exported, run_dir):
    theirs = AutoConfig.from_pretrained(exported)
    ours = run_checkpoint.load(run_dir).config
    assert {name: getattr(theirs, name) for name in hf_config.to_dict(ours)} == hf_config.to_dict(ours)


def saved(folder, change):
    """The export with its tensors changed."""
    tensors = load_file(folder / shards.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / shards.WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tied(tokenizer, tmp_path_factory):
    """An export of a tied model, and its parameters."""
    folder = tmp_path_factory.mktemp("tied")
    config = tiny(vocab_size=300, tie_word_embeddings=True)
    params = sensible_params(config)
    run_checkpoint.save(folder / "run", RunCheckpoint(params, config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(folder / "run", folder / "hf")
    return folder / "hf", params


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "change",
    [lambda t: t.update({HEAD: t[EMBEDDING].copy()}), lambda t: t.update({HEAD: t.pop(EMBEDDING)})],
    ids=["saved twice", "head alone"],
)
def test_a_tied_head_is_one_however_it_was_saved(tied, tmp_path, change):
    folder, params = tied
    saved(shutil.copytree(folder, tmp_path / "hf"), change)
    hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    assert bits(run_checkpoint.load(tmp_path / "run").params) == bits(params)


def test_a_tied_head_of_other_values_is_refused(tied, tmp_path):
    saved(shutil.copytree(tied[0], tmp_path / "hf"), lambda t: t.update({HEAD: t[EMBEDDING] + 1}))
    with pytest.raises(
        UserError, match=r"lm_head\.weight with other values than model\.embed_tokens\.weight, but tie_w"
    ):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")


KEY = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t[KEY].__setitem__((0, 3), np.nan), "up_proj.weight with 1 of 480 values that are nan or infinite"),
        (lambda t: t[KEY].__setitem__(0, -np.inf), "up_proj.weight with 24 of 480 values that are nan or infinite"),
        (lambda t: t.update({KEY: t[KEY].astype(np.int32)}), "up_proj.weight as I32, expected one of float32"),
        (lambda t: t.update({KEY: t[KEY].astype(np.float64)}), "up_proj.weight as F64, expected one of float32"),
        (lambda t: t.update({KEY: t[KEY] > 0}), "up_proj.weight as BOOL, expected one of float32"),
        (lambda t: t.update({KEY: t[KEY].astype(np.complex64)}), "up_proj.weight as C64, expected one of float32"),
    ],
)
def test_what_is_no_number_of_ours_is_refused(exported, tmp_path, change, complaint):
    saved(shutil.copytree(exported, tmp_path / "hf"), change)
    with pytest.raises(UserError, match=complaint):
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_first(params: weights.Params, value: float, dtype: str) -> weights.Params:
    """The parameters with this value at the first place of each layer's up_proj, and of that dtype."""
    leaves = dict(weights.flatten(held(params)))
    kernel = leaves["model", "layers", "mlp", "up_proj", "kernel"]
    kernel[:, 0, 0] = value
    return weights.unflatten(leaves | {("model", "layers", "mlp", "up_proj", "kernel"): kernel.astype(dtype)})


@pytest.mark.parametrize(
    ("value", "dtype", "complaint"),
    [
        (np.nan, "float32", "mlp.up_proj.weight with 1 of 480 values that are nan or infinite: the model is broken"),
        (np.inf, "float32", "mlp.up_proj.weight with 1 of 480 values that are nan or infinite: the model is broken"),
        (3.0, "int32", "model/layers/mlp/up_proj/kernel as int32, expected one of float32"),
    ],
)
def test_a_checkpoint_of_no_numbers_of_ours_is_not_exported(run_dir, tmp_path, capsys, value, dtype, complaint):
    before = run_checkpoint.load(run_dir)
    run_checkpoint.save(tmp_path / "run", replace(before, params=with_first(before.params, value, dtype)))
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 2
    assert f"the checkpoint of step 0 in {tmp_path / 'run'} holds " in (said := capsys.readouterr().err)
    assert complaint in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_cannot_write_outside_of_its_export(run_dir, tokenizer, tmp_path):
    before = run_checkpoint.load(run_dir)
    files = {**tokenizer.files, "../evil.txt": "x"}
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(before.params, before.config, files, step=0))
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_exported_tokenizer_begins_a_text_as_training_did_and_cuts_it(exported, tokenizer):
    ours = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.encode("the star")
    assert ours("the star").input_ids == [tokenizer.bos_token_id, *ids]
    assert ours("the star", add_special_tokens=False).input_ids == ids
    assert ours("", "star").input_ids == [tokenizer.bos_token_id, *tokenizer.encode("star")]
    assert len(ours("the star " * 99, truncation=True).input_ids) == ours.model_max_length == 64
    chat = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(chat)["input_ids"].count(tokenizer.bos_token_id) == 1, "the template has its own"
    card = (exported / "README.md").read_text("utf-8")
    assert 'tokenizer("…"' in card and "the tokenizer puts it there" in card


@pytest.mark.parametrize("compact", [False, True])
def test_the_tokenizer_comes_back_as_it_was(run_dir, tokenizer, tmp_path, compact):
    before = run_checkpoint.load(run_dir)
    content = tokenizer.files["tokenizer.json"]
    files = {**tokenizer.files, "tokenizer.json": json.dumps(json.loads(content)) if compact else content}
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(before.params, before.config, files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "back")
    assert run_checkpoint.load(tmp_path / "back").tokenizer_files == files
    if not compact:
        AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "hf")
        hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "saved")
        assert run_checkpoint.load(tmp_path / "saved").tokenizer_files["tokenizer.json"] == content
