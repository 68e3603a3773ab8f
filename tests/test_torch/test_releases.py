"""An export speaks the same under every release of transformers, in a process that has its folder alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from .exported import export
from .tiny import POSITIONS, SWITCHES

# What a folder says in a process without StellarByte: greedy, drawn, by beams, left-padded, through a static cache and
# with an assistant, and by a loop of single steps that uses either name of the cache.
SPEAK = """
import json, os, sys
folder, modules = sys.argv[1:]
os.environ["HF_MODULES_CACHE"] = modules
sys.modules["stellarbyte_torch"] = None  # importing it now fails
import inspect
import torch
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
mask = torch.ones_like(ids)
common = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 2, "attention_mask": mask}
said = {"forward": model.generate(ids, use_cache=False, do_sample=False, **common)}
said["greedy"] = model.generate(ids, do_sample=False, **common)
said["static"] = model.generate(ids, do_sample=False, cache_implementation="static", disable_compile=True, **common)
torch.manual_seed(7)
said["drawn"] = model.generate(ids, do_sample=True, temperature=1.3, top_k=20, **common)
said["beams"] = model.generate(ids, do_sample=False, num_beams=3, **common)
padded, common["attention_mask"] = ids.clone(), mask.clone()
padded[0, :4], common["attention_mask"][0, :4] = 2, 0
said["padded"] = model.generate(padded, do_sample=False, **common)
common["attention_mask"] = mask[:1]
said["assisted"] = model.generate(ids[:1], do_sample=False, assistant_model=model, **common)
name = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
for word in ("past_key_values", "cache"):
    tokens, outputs = ids, model(ids)
    for _ in range(12):
        last = outputs.logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, last], 1)
        outputs = model(last, **{word: outputs[name]})
    said[word] = tokens
try:
    model(ids, atention_mask=mask)
except TypeError as error:
    assert "atention_mask" in str(error), error
else:
    raise SystemExit("an unknown keyword was swallowed")
print(json.dumps({how: ids.tolist() for how, ids in said.items()}))
"""
FOLDERS: dict[str, dict[str, Any]] = {
    "xpos": POSITIONS["xpos_learnable"],
    "window": {"position_embedding": "rope", "sliding_window": 5},
    "window_1": SWITCHES["window_1"],
    "everything": SWITCHES["everything"],
}


def speak(python: str, folder: Path, modules: Path) -> dict[str, Any]:
    command = [python, "-c", SPEAK, str(folder), str(modules)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def assert_ways_agree(said: dict[str, Any]) -> None:
    for how in ("greedy", "static", "past_key_values", "cache"):
        assert said[how] == said["forward"], how
    assert said["assisted"][0] == said["greedy"][0]
    assert said["padded"][1] == said["greedy"][1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["xpos", "everything"])
def test_an_export_alone_speaks_the_same_in_every_way(name: str, tmp_path: Path) -> None:
    folder = export(tmp_path / "hf", **FOLDERS[name])
    assert_ways_agree(speak(sys.executable, folder, tmp_path / "modules"))


@pytest.mark.long
@pytest.mark.parametrize("name", FOLDERS)
def test_every_release_speaks_token_for_token_the_same(name: str, tmp_path: Path) -> None:
    """STELLARBYTE_PYTHONS lists the Pythons of other environments, such as "a/bin/python:b/bin/python"."""
    others = [python for python in os.environ.get("STELLARBYTE_PYTHONS", "").split(os.pathsep) if python]
    folder = export(tmp_path / "hf", **FOLDERS[name])
    expected = speak(sys.executable, folder, tmp_path / f"modules-{transformers.__version__}")
    assert_ways_agree(expected)
    for number, python in enumerate(others):
        assert speak(python, folder, tmp_path / f"modules-{number}") == expected, python
