"""generate and chat take a run and its export alike, and say the same of both."""

import io
import json
import sys

import pytest

from stellarbyte.door import main


@pytest.mark.parametrize("sampling", [[], ["--repetition-penalty", "1.3"], ["--stop", "e"]], ids=str)
def test_generate_says_the_same_of_a_run_and_its_export(run_dir, exported, sampling, capsys):
    said = []
    for model in (run_dir, exported):
        options = ["--prompt", "a star", "", "--max-new-tokens", "12", "--json", *sampling]
        assert main(["generate", str(model), *options]) == 0
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(said[0]) == 2
    # PyTorch hears of a stop string a token later where its last token ends within a character.
    common = ("prompt", "text", "prompt_tokens", *(() if "--stop" in sampling else ("new_tokens",)))
    ours, theirs = ([{name: record[name] for name in common} for record in records] for records in said)
    assert ours == theirs


def test_chat_says_the_same_with_a_run_and_its_export(run_dir, exported, monkeypatch, capsys):
    said = []
    for model in (run_dir, exported):
        monkeypatch.setattr(sys, "stdin", io.StringIO("star\n/system be brief\nbyte\n/retry\n/adapters\n"))
        assert main(["chat", str(model), "--max-new-tokens", "8", "--json"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        clocked = {"tokens_per_second", "step_seconds", "host_bytes"}
        said.append([{k: v for k, v in record.items() if k not in clocked} for record in records])
    assert said[0] == said[1] and len(said[0]) == 5
