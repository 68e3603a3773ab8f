"""llama.cpp itself reads a GGUF, cuts texts into the run's own tokens, and computes what the run computes."""

import json
import urllib.request

import numpy as np
import pytest

from convert import gguf_export
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stock_tokenizers import TEXTS
from test_convert.test_gguf import (  # noqa: F401 - fixtures
    FAMILIES,
    PRE_TOKENIZERS,
    _stdlib,
    lines,
    make_run,
    relative,
    tokenizer_of,
)

pytestmark = pytest.mark.long
xllamacpp = pytest.importorskip("xllamacpp", reason="make test-all installs it")


class Server:
    """llama.cpp's server with one model."""

    def __init__(self, file):
        options = xllamacpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx = 256
        options.warmup = False
        options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # float16 by default
        options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.cpuparams.n_threads = 1
        self._server = xllamacpp.Server(options)

    def ask(self, path, **content):
        url = self._server.listening_address + path
        request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokens(self, text, **options):
        return self.ask("/tokenize", content=text, **{"add_special": False, "parse_special": False, **options})[
            "tokens"
        ]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_it_tokenizes_ten_thousand_lines_as_the_run_does(make_run, tmp_path, pre):  # noqa: F811
    tokenizer = train_tokenizer([*_stdlib(), *TEXTS], 4096, tmp_path / "t", report=lambda _: None, pattern=pre)
    run, _ = make_run(files=tokenizer.files, vocab_size=4100)
    gguf_export.to_gguf(run, tmp_path / "model.gguf")
    server = Server(tmp_path / "model.gguf")
    for text in lines(10_000):
        assert server.tokens(text) == tokenizer.encode(text), text
    assert server.tokens("a star", add_special=True) == [0, *tokenizer.encode("a star")]
    assert server.tokens("<|SEOS|>", parse_special=True) == [1]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_run_computes(make_run, tmp_path, family):  # noqa: F811
    import torch
    from transformers import AutoModelForCausalLM

    import stellarbyte_torch  # noqa: F401 - makes the Auto classes know the architecture
    from stellarbyte.door import main

    run, config = make_run(**FAMILIES[family])
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    gguf_export.to_gguf(run, tmp_path / "model.gguf", dtype="f32")
    server = Server(tmp_path / "model.gguf")

    # It leaves out the probabilities of a token that ends within a character, so each token is to be a letter.
    prompt, (letter,) = np.random.default_rng(0).integers(3, 300, 40).tolist(), server.tokens("a")
    options = {"n_predict": 12, "n_probs": config.vocab_size, "logit_bias": [[letter, 1000]]}
    said = server.ask("/completion", prompt=prompt, temperature=0, **options)["completion_probabilities"]
    assert [each["id"] for each in said] == [letter] * 12
    with torch.no_grad():
        logits = model(torch.tensor([prompt + [letter] * 11])).logits[0, len(prompt) - 1 :]
    found = [{each["id"]: each["logprob"] for each in row["top_logprobs"]} for row in said]
    expected = logits.log_softmax(-1).numpy()
    assert relative(np.array([[row[token] for token in range(len(row))] for row in found]), expected) < 1e-5
