import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte_jax.data.stream_decoder import StreamDecoder
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_torch.generate import generate, load
from stellarbyte_torch.kv_cache import PrunedCache

from .exported import export
from .tiny import TINY

CONTEXT = TINY["max_position_embeddings"]
PROMPT = "The café 春眠 🚀"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("export"))


@torch.no_grad()
def greedy_ids(model: Any, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids


def test_greedy_text_is_that_of_the_jax_sides_tokenizer(folder: Path) -> None:
    """[bos] + prompt, argmax, and text decoded as the JAX side does: the two commands must print the same."""
    model, tokenizer = load(folder, "cpu")
    ours = Tokenizer.load(folder)
    prompt_ids = [0, *ours.encode(PROMPT)]
    new_ids = greedy_ids(model, prompt_ids, 20)[len(prompt_ids) :]
    assert 1 not in new_ids, "choose another seed: this test is about tokens before an eos"
    pieces: list[str] = []
    result = generate(model, tokenizer, PROMPT, 20, on_text=pieces.append)
    decoder = StreamDecoder(ours)
    assert result.text == "".join(map(decoder.push, new_ids)) + decoder.finish() == ours.decode(new_ids)
    assert result.text == "".join(pieces)
    assert (result.prompt, result.prompt_tokens, result.new_tokens) == (PROMPT, len(prompt_ids), 20)
    assert result.tokens_per_second > 0


def test_special_strings_in_a_prompt_are_ordinary_text(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    prompt = "a<|SEOS|>b"
    result = generate(model, tokenizer, prompt, 1)
    assert result.prompt_tokens == 1 + len(Tokenizer.load(folder).encode(prompt)) > 4


def test_streamed_pieces_are_whole_characters(folder: Path) -> None:
    """Whatever tokens come, the pieces add up to the text, and no character is torn apart."""
    model, tokenizer = load(folder, "cpu")
    ours = Tokenizer.load(folder)

    class Parrot:
        config, get_input_embeddings = model.config, model.get_input_embeddings
        device = torch.device("cpu")

        def generate(self, ids: torch.Tensor, streamer: Any, **_: Any) -> torch.Tensor:
            new_ids = ours.encode("春🚀é".encode() + b"\xe6\x98" + b"!" + b"\xf0\x9f")
            streamer.put(ids)
            for token in new_ids:
                streamer.put(torch.tensor([token]))
            streamer.end()
            return torch.cat([ids, torch.tensor([new_ids])], dim=1)

    pieces: list[str] = []
    result = generate(Parrot(), tokenizer, "x", 128, on_text=pieces.append)
    assert result.text == "".join(pieces) == "春🚀é\N{REPLACEMENT CHARACTER}!\N{REPLACEMENT CHARACTER}"
    assert pieces[0].startswith("春")
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-2])


def test_stops_at_eos_which_is_not_printed(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    new_ids = greedy_ids(model, [0, *Tokenizer.load(folder).encode(PROMPT)], 20)[-20:]
    model.config.eos_token_id = stop = new_ids[5]
    result = generate(model, tokenizer, PROMPT, 20)
    assert result.new_tokens == new_ids.index(stop)
    assert result.text == Tokenizer.load(folder).decode(new_ids[: new_ids.index(stop)])


def test_stops_where_the_context_ends(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    prompt = "x" * (CONTEXT - 4)
    result = generate(model, tokenizer, prompt, 100)
    assert (result.prompt_tokens, result.new_tokens) == (CONTEXT - 3, 3)


def test_empty_prompt(folder: Path) -> None:
    result = generate(*load(folder, "cpu"), "", 3)
    assert (result.prompt_tokens, result.new_tokens) == (1, 3)


def test_sampling_follows_its_seed_and_limits(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")

    def text(seed: int = 0, **options: Any) -> str:
        return generate(model, tokenizer, "The", 15, Sampling(**options), seed).text

    assert text(3, temperature=1.0) == text(3, temperature=1.0)
    assert len({text(seed, temperature=1.0) for seed in range(4)}) > 1
    assert text(temperature=2.0, top_k=1) == text() == text(temperature=2.0, top_p=1e-9)
    assert text(temperature=2.0, min_p=1.0) == text()


def test_the_repetition_penalty_is_transformers_own(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    text = generate(model, tokenizer, PROMPT, 20, Sampling(repetition_penalty=1.8)).text
    ids = torch.tensor([[0, *Tokenizer.load(folder).encode(PROMPT)]])
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, repetition_penalty=1.8)[0, ids.shape[1] :]
    assert text == tokenizer.decode(expected, skip_special_tokens=True) != generate(model, tokenizer, PROMPT, 20).text


def test_an_answer_ends_before_a_stop_string(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    whole = generate(model, tokenizer, PROMPT, 20)
    stop = whole.text[5:8]
    pieces: list[str] = []
    ended = generate(model, tokenizer, PROMPT, 20, stop=["\x00", stop], on_text=pieces.append)
    assert ended.text == "".join(pieces) == whole.text[: whole.text.index(stop)]
    assert ended.new_tokens < whole.new_tokens and ended.cut_at is None
    assert generate(model, tokenizer, PROMPT, 20, stop=["\x00"]).text == whole.text
    with pytest.raises(UserError, match=r"^stop '' would end"):
        generate(model, tokenizer, PROMPT, 20, stop=[""])


def test_saved_generation_settings_do_not_leak_in(tmp_path: Path) -> None:
    export(tmp_path)
    expected = generate(*load(tmp_path, "cpu"), "The", 10).text
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, "repetition_penalty": 9.0}))
    assert generate(*load(tmp_path, "cpu"), "The", 10).text == expected


def test_a_prompt_longer_than_the_context_is_refused(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    for length in (CONTEXT - 1, 3 * CONTEXT):
        with pytest.raises(UserError, match=f"^--prompt has {length + 1} tokens .* context of {CONTEXT}"):
            generate(model, tokenizer, "x" * length, 128)


@pytest.mark.parametrize(
    ("length", "seed", "sentence"),
    [(0, 0, "--max-new-tokens 0 must be at least 1"), (1, -1, "--seed -1 must be"), (1, 2**64, "--seed 18446744073")],
)
def test_bad_lengths_and_seeds_are_refused(length: int, seed: int, sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        generate(*load(folder, "cpu"), "The", length, seed=seed)


def test_dtype_is_the_saved_one_or_the_given(folder: Path) -> None:
    assert load(folder, "cpu")[0].dtype is torch.float32
    assert load(folder, "cpu", "bfloat16")[0].dtype is torch.bfloat16


def test_a_missing_device_is_refused(folder: Path) -> None:
    for device in ("cuda:99", "gpu", "meta", "mps", ""):
        with pytest.raises(UserError, match=f"^--device {device} is not available here: ") as refused:
            load(folder, device)
        assert len(str(refused.value)) < 400


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    export(tmp_path)

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load(tmp_path, "cpu")
        assert "\n" not in str(caught.value)

    config, weights, tokenizer = (tmp_path / name for name in ("config.json", "model.safetensors", "tokenizer.json"))
    whole_config, whole_weights, whole_tokenizer = (path.read_bytes() for path in (config, weights, tokenizer))
    schema = json.loads(whole_config)

    tokenizer.write_text("{}")
    refused(r"tokenizer\.json is not a tokenizer that can be used: ")
    tokenizer.unlink()
    refused("holds no tokenizer: copy the one there")
    tokenizer.write_bytes(whole_tokenizer)
    weights.write_bytes(whole_weights[:1000])
    refused("model.safetensors is not a whole safetensors file: ")
    weights.unlink()
    refused("holds a model that cannot be loaded: .*model.safetensors")
    weights.write_bytes(whole_weights)
    config.write_text(json.dumps({**schema, "num_hidden_layers": 3}))
    refused("does not fit its config.json: missing keys .*model.layers.2")
    config.write_text(json.dumps({**schema, "num_hidden_layers": 1}))
    refused("does not fit its config.json: unexpected keys .*model.layers.1")
    config.write_text(json.dumps({**schema, "intermediate_size": 50}))
    refused(r"mismatched keys \['model\.layers\.0\.mlp\.down_proj\.weight \[32, 48\] for \[32, 50\]', ")
    config.write_text(json.dumps({**schema, "num_key_value_heads": 3}))
    refused("holds a model that cannot be loaded: num_key_value_heads 3 must divide")
    config.write_text(json.dumps({**schema, "num_key_value_heads": "2"}))
    refused("holds a model that cannot be loaded: ")
    config.write_text("{")
    refused("config.json is not valid JSON")
    config.write_text("[]")
    refused("config.json holds a list")
    config.write_text(json.dumps({"model_type": "t5"}))
    refused("Transformers has no causal language model of model_type .t5.")
    config.unlink()
    refused("holds no config.json")


@pytest.mark.parametrize("begins", [True, False])
def test_a_stock_model_begins_as_its_tokenizer_does(begins: bool, tmp_path: Path) -> None:
    """What `generate` prints is what Transformers' own generate makes of the same text, within a budget for all too."""
    export(tmp_path)
    shape = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = LlamaConfig(
        **shape, vocab_size=320, intermediate_size=48, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1
    )
    stock = LlamaForCausalLM(config).eval()
    stock.save_pretrained(tmp_path)
    if begins:
        fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        bos = fast.id_to_token(0)
        fast.post_processor = tokenizers.processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 0)])
        fast.save(str(tmp_path / "tokenizer.json"))
    model, tokenizer = load(tmp_path, "cpu")
    given = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert (given[0, 0] == 0) == begins
    theirs = stock.generate(given, max_new_tokens=6, do_sample=False, pad_token_id=2)[0, given.shape[1] :].tolist()
    for pruning in (None, KVPruning(KVBudget(slots=CONTEXT), policy("snap"))):
        ours = generate(model, tokenizer, PROMPT, 6, pruning=pruning)
        assert ours.prompt_tokens == given.shape[1]
        assert ours.text == tokenizer.decode(theirs, skip_special_tokens=True)
    assert generate(model, tokenizer, "", 2).prompt_tokens == 1


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    export(tmp_path, vocab_size=280)
    with pytest.raises(UserError, match=r"tokenizer of 300 tokens, more than the model's vocab_size 280"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}])
def test_no_token_is_drawn_by_what_is_no_number(options: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer = load(export(tmp_path), "cpu")
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    shown: list[str] = []
    with pytest.raises(UserError, match="after 5 tokens the model's scores are no finite numbers"):
        generate(model, tokenizer, "star", 4, Sampling(**options), on_text=shown.append)
    assert shown == []


def test_a_budget_for_the_whole_text_changes_nothing_and_a_smaller_one_is_kept(folder: Path) -> None:
    model, tokenizer = load(folder, "cpu")
    length = generate(model, tokenizer, PROMPT, 1).prompt_tokens
    expected, held = generate(model, tokenizer, PROMPT, 20).text, []

    def answer(budget: str) -> str:
        pruning = KVPruning(KVBudget.parse(budget), policy("heavy"))
        return generate(model, tokenizer, PROMPT, 20, pruning=pruning).text

    assert answer("100%") == answer(str(length + 20)) == expected
    attend = PrunedCache.attend

    def watched(self: PrunedCache, *arguments: Any, **options: Any) -> Any:
        output = attend(self, *arguments, **options)
        held.append((self.sizes, self.layers[-1].slots.used if self.layers[-1].slots else 0))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrunedCache, "attend", watched)
        assert answer("16") != expected
    assert {sizes for sizes, _ in held} == {(16, 16)}
    assert max(used for _, used in held) == 16
