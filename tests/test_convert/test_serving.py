"""A stock export is served: `transformers serve` answers what the model itself says."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from convert import hf_checkpoint
from convert.run_checkpoint import RunCheckpoint, save
from test_convert.models import sensible_params, tiny

pytestmark = pytest.mark.long
for library in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(library, reason="make test-all installs it")

MESSAGES = [{"role": "user", "content": "a star"}]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _post(url: str, content: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _wait(url: str, server: subprocess.Popen) -> None:
    for _ in range(240):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def test_transformers_serve_answers_as_the_model(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = tiny(vocab_size=300, position_embedding="rope", max_position_embeddings=128)
    save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    folder = tmp_path / "model"
    hf_checkpoint.to_hf(tmp_path / "run", folder, family="llama")
    model, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    expected = theirs.decode(ids, skip_special_tokens=True)

    port = _free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], env=environment
    )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        asked = {"model": str(folder), "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "stream": False}
        answer = _post(f"http://127.0.0.1:{port}/v1/chat/completions", asked)
    finally:
        server.terminate()
        server.wait(30)
    assert answer["choices"][0]["message"]["content"] == expected
