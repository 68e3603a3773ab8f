"""A GGUF holds the run's model and tokenizer: Transformers' own loader of GGUF reads both back."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
import tokenizers

from convert import exported_tokenizer, gguf_export
from convert.gguf_tokenizer import gguf_tokenizer
from convert.run_checkpoint import RunCheckpoint, load, save
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.pruning.cuts import Cuts
from stellarbyte_jax.config import RopeScaling
from stellarbyte_jax.data.corpus import stdlib_sources
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.model.pruning import cut
from stock_tokenizers import TEXTS, llama_2, llama_3, qwen_2
from test_convert.models import held, sensible_params, tiny

ROWS = 410  # more than the tokenizers have tokens
LLAMA = {"vocab_size": ROWS, "position_embedding": "rope", "hidden_size": 32, "num_attention_heads": 4}
FAMILIES = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 128},  # Transformers takes a head of 128 for granted
    "qwen3_moe": LLAMA | {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768},
}
PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "qwen2")


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def pre(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Trains each tokenizer once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp(name), report=lambda _: None, pattern=name)
        return made[name]

    return of


@pytest.fixture
def make_run(tmp_path, tokenizer_of):
    def make(pre="llama-bpe", files=None, **fields):
        config = tiny(**{**LLAMA, "max_position_embeddings": 256, **fields})
        files = files or tokenizer_of(pre).files
        save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, files, step=0))
        return tmp_path / "run", config

    return make


def ours(run, folder):
    """The logits of the run's own export."""
    import torch
    from transformers import AutoModelForCausalLM

    import stellarbyte_torch  # noqa: F401 - makes the Auto classes know the architecture

    assert main(["convert", "to-hf", str(run), str(folder)]) == 0
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def theirs(file):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def logits(model):
    import torch

    ids = torch.tensor(np.random.default_rng(0).integers(3, 300, (2, 40)))
    with torch.no_grad():
        return model(ids).logits.numpy()


def relative(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_of_a_gguf(make_run, tmp_path, family):
    run, config = make_run(**FAMILIES[family])
    file = tmp_path / "model.gguf"
    done = gguf_export.to_gguf(run, file, dtype="f32")
    assert (done.family, done.nbytes) == (family, file.stat().st_size)
    model = theirs(file)
    assert model.config.model_type == family
    assert model.config.vocab_size == config.vocab_size
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 1, 2)
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
    assert relative(logits(model), ours(run, tmp_path / "hf")) < 1e-5


@pytest.mark.parametrize("even", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_pruned_run_goes_there_if_its_layers_are_alike(make_run, tmp_path, capsys, even):
    run, config = make_run()
    heads = {0: (2, 3), 1: (0, 1)} if even else {0: (1,)}
    checkpoint, cuts = load(run), Cuts(heads=heads, channels=dict.fromkeys(range(1 + even), (0, 5)))
    smaller, params = cut(config, held(checkpoint.params), cuts)
    thin = tmp_path / "thin"
    save(thin, RunCheckpoint(params, smaller, checkpoint.tokenizer_files, step=0))
    code = main(["convert", "to-gguf", str(thin), str(tmp_path / "model.gguf"), "--dtype", "f32"])
    if even:
        assert code == 0 and smaller.num_attention_heads == config.num_attention_heads // 2
        assert relative(logits(theirs(tmp_path / "model.gguf")), ours(thin, tmp_path / "hf")) < 1e-5
    else:
        assert code == 2 and "intermediate_size" in capsys.readouterr().err
        assert not (tmp_path / "model.gguf").exists()


def rounded(values, dtype):
    """A matrix as the file holds it."""
    import torch

    if dtype != "q8_0" or values.shape[-1] % 32:
        return values.to(torch.bfloat16 if dtype == "bf16" else torch.float16).float()
    blocks = values.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    return ((blocks / scale).round() * scale.half().float()).reshape(values.shape)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_dtypes(make_run, tmp_path, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    run, _ = make_run(tie_word_embeddings=True, layer_scale_init=0.7)
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf"), "--as", "llama"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    exact = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(rounded(parameter, dtype))
    gguf_export.to_gguf(run, tmp_path / "model.gguf", dtype=dtype)
    found = theirs(tmp_path / "model.gguf")
    assert found.config.tie_word_embeddings is True
    assert relative(logits(found), logits(model)) < 1e-5
    assert relative(logits(found), exact) > 1e-5


def test_rows_that_no_block_fits_are_in_float16(make_run, tmp_path):
    from gguf import GGUFReader

    run, _ = make_run(intermediate_size=20)
    gguf_export.to_gguf(run, tmp_path / "model.gguf", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_value_beyond_float16_is_refused(make_run, tmp_path, tokenizer_of):
    run, config = make_run()
    params = sensible_params(config)
    params["model"]["layers"]["mlp"]["up_proj"]["kernel"][1, 3, 5] = 7e4
    shutil.rmtree(run)
    save(run, RunCheckpoint(params, config, tokenizer_of("llama-bpe").files, step=0))
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight has 1 of 640 values that are beyond float16"):
        gguf_export.to_gguf(run, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
    gguf_export.to_gguf(run, tmp_path / "model.gguf", dtype="bf16")


def _stdlib():
    return [text for _, (_, text) in zip(range(300), stdlib_sources(), strict=False)]


def lines(count):
    """Lines of code, English, Chinese, blanks, emoji and odd characters; the same each time."""
    draw = random.Random(0)
    code = [line for text in _stdlib() for line in text.splitlines()[:40]][: count * 4]
    han = [chr(point) for point in range(0x4E00, 0x9FA5)]
    odd = ["\u00a0", "\u3000", "\t", "  ", "\U0001f600", "é", "e\u0301", "'s", "'LL", "123456", "\r", "。", "\u200d"]
    chinese = ["".join(draw.choices(han, k=draw.randint(1, 30))) for _ in range(count)]
    mixed = ["".join(draw.choices([*odd, *han[:50], *"abc XYZ_()"], k=draw.randint(0, 40))) for _ in range(count)]
    return draw.sample([*code, *chinese, *mixed], count)


def check_ids(file, tokenizer, texts):
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    found = read(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    for text, ids in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text), text
    return read


def test_transformers_tokenizes_the_same(make_run, tmp_path, tokenizer_of, pre):
    run, _ = make_run(pre)
    gguf_export.to_gguf(run, tmp_path / "model.gguf")
    read = check_ids(tmp_path / "model.gguf", tokenizer_of(pre), lines(400))
    messages = [{"role": "user", "content": "a star"}]
    template = tokenizer_of(pre).files["chat_template.jinja"]
    assert read.chat_template == template
    assert read("a star").input_ids == [0, *tokenizer_of(pre).encode("a star")]
    said = read.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert said[0] == 0 and said.count(0) == 2 and said.count(1) == 1  # <|SBOS|> and <|SEOS|> are single tokens
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<|SBOS|>", "<|SEOS|>", "<|PAD|>")


@pytest.mark.long
def test_transformers_tokenizes_ten_thousand_lines_the_same(make_run, tmp_path, pre):
    tokenizer = train_tokenizer([*_stdlib(), *TEXTS], 4096, tmp_path / "t", report=lambda _: None, pattern=pre)
    run, _ = make_run(files=tokenizer.files, vocab_size=4100)
    gguf_export.to_gguf(run, tmp_path / "model.gguf")
    check_ids(tmp_path / "model.gguf", tokenizer, lines(10_000))


def refusal(files, rows=ROWS):
    with pytest.raises(UserError) as error:
        gguf_tokenizer(files, rows, "the run")
    return str(error.value)


class TestTokenizersThatWouldDiffer:
    def test_a_pattern_that_llama_cpp_does_not_know(self, tokenizer_of):
        said = refusal(tokenizer_of("stellarbyte").files)
        assert "by a pattern that llama.cpp does not know" in said
        assert "tokenizer train --pre-tokenizer gpt-2|llama-bpe|qwen2" in said

    def test_sentencepiece(self, tmp_path):
        assert "in SentencePiece's manner" in refusal(Tokenizer.load(llama_2(tmp_path)).files, 600)

    def test_too_few_rows(self, tokenizer_of):
        assert "model.vocab_size 300 is smaller" in refusal(tokenizer_of("qwen2").files, 300)

    @pytest.mark.parametrize(("name", "ignores"), [("llama-bpe", False), ("qwen2", True), ("gpt-2", True)])
    def test_a_token_that_no_merge_leads_to(self, tokenizer_of, name, ignores):
        files = dict(tokenizer_of(name).files)
        content = json.loads(files["tokenizer.json"])
        content["model"]["vocab"]["zqxj"] = 405
        content["model"]["ignore_merges"] = ignores
        said = refusal({**files, "tokenizer.json": json.dumps(content)})
        assert f"llama.cpp {'would not' if ignores else 'would'} use under the name {name}" in said

    def test_added_tokens_that_are_not_ascii(self, tokenizer_of):
        backend = tokenizers.Tokenizer.from_str(tokenizer_of("qwen2").files["tokenizer.json"])
        backend.add_tokens([tokenizers.AddedToken("<a tool>", special=False)])
        said = refusal({**tokenizer_of("qwen2").files, "tokenizer.json": backend.to_str()})
        assert "has the added token '<a tool>'" in said


def test_stock_tokenizers(tmp_path):
    llama = Tokenizer.load(llama_3(tmp_path / "llama"))
    found = gguf_tokenizer(llama.files, ROWS, "the run")
    assert (found.pre, found.adds_bos, found.changes) == ("llama-bpe", True, ())
    assert found.chat_template == llama.settings["chat_template"]
    assert found.tokens[llama.bos_token_id] == "<|begin_of_text|>"
    qwen = gguf_tokenizer(Tokenizer.load(qwen_2(tmp_path / "qwen")).files, ROWS, "the run")
    assert (qwen.pre, qwen.adds_bos) == ("qwen2", False)
    assert [kind for kind in qwen.types if kind != 1] == [3, 3, 3, 4, *[5] * (ROWS - 398)]
    assert "NFC" in qwen.changes[0]


def test_gpt_2s_own_form_is_known(tokenizer_of):
    files = dict(tokenizer_of("gpt-2").files)
    content = json.loads(files["tokenizer.json"])
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    found = gguf_tokenizer({**files, "tokenizer.json": json.dumps(content)}, ROWS, "the run")
    assert found == gguf_tokenizer(files, ROWS, "the run")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"position_embedding": "xpos"}, "is of no family that llama.cpp knows. It is no LlamaForCausalLM"),
        ({"sliding_window": 8}, "has sliding_window 8, which readers of GGUF do not learn from it"),
        ({"attention_bias": True}, "has attention_bias True"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "has hidden_act 'gelu_pytorch_tanh'"),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, "has rope_scaling"),
    ],
)
def test_models_without_a_place_are_refused(make_run, tmp_path, fields, complaint):
    run, _ = make_run(**fields)
    with pytest.raises(UserError) as error:
        gguf_export.to_gguf(run, tmp_path / "model.gguf")
    assert complaint in str(error.value)
    assert not list(tmp_path.glob("*.gguf*"))


class TestCommand:
    def test_it_tells_what_it_wrote(self, make_run, tmp_path, capsys):
        run, _ = make_run("qwen2")
        command = ["convert", "to-gguf", str(run), str(tmp_path / "new" / "model.gguf"), "--dtype", "q8_0"]
        assert main(command) == 0
        said = capsys.readouterr()
        assert said.out.endswith("model.gguf: step 0 as llama, 0.1 MB in q8_0\n")
        assert said.err == ""
        assert main(command) == 2
        assert "exists already: name another file, or use --force" in capsys.readouterr().err
        assert main([*command, "--force"]) == 0

    def test_without_the_package(self, make_run, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gguf", None)
        run, _ = make_run()
        assert main(["convert", "to-gguf", str(run), str(tmp_path / "model.gguf")]) == 2
        assert "pip install 'stellarbyte[gguf]'" in capsys.readouterr().err

    def test_what_the_tokenizer_changes_is_told(self, make_run, tmp_path, capsys):
        files = Tokenizer.load(qwen_2(tmp_path / "qwen")).files
        ids = Tokenizer(files, "qwen").document_ids
        run, _ = make_run(files=files, **{f"{name}_token_id": i for name, i in ids._asdict().items()})
        assert main(["convert", "to-gguf", str(run), str(tmp_path / "model.gguf")]) == 0
        assert (
            "the tokenizer writes texts in Unicode's normal form NFC, and llama.cpp does not" in capsys.readouterr().err
        )


def test_every_row_has_a_token(tokenizer_of):
    files = exported_tokenizer.for_hugging_face(tokenizer_of("llama-bpe").files, 256)
    found = gguf_tokenizer(files, ROWS, "the run")
    assert found.adds_bos
    assert len(found.tokens) == len(found.types) == len(set(found.tokens)) == ROWS
    vocabulary = tokenizer_of("llama-bpe").vocabulary
    assert {found.tokens[row]: row for row in range(len(vocabulary))} == vocabulary
