"""The recipes of docs/pods.md, as far as they can be checked without a pod."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from stellarbyte.door import build_parser
from stellarbyte_jax.config_file import load_run_config
from stellarbyte_jax.data.parts import Part

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
SCRIPTS += [re.sub("^    ", "", block, flags=re.M) for block in re.findall(r"\n\n((?:    .*\n)+)", PAGE)]
MANIFESTS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def commands() -> list[list[str]]:
    """Every `stellarbyte …` of the page as words, up to what ends it in the shell."""
    scripts = [script.replace("\\\n", " ") for script in SCRIPTS]
    found = re.findall(r"(?<![\w/-])stellarbyte pretrain [^\n\"&]*", "\n".join(scripts))
    containers = [
        container
        for manifest in MANIFESTS
        if manifest["kind"] == "JobSet"
        for job in manifest["spec"]["replicatedJobs"]
        for container in job["template"]["spec"]["template"]["spec"]["containers"]
    ]
    return [shlex.split(line) for line in found] + [container["command"] for container in containers]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_are_understood() -> None:
    assert len(SCRIPTS) == 5 and len(MANIFESTS) == 2 and len(commands()) == 5
    for command in commands():
        options, overrides = build_parser().parse_known_args([word.replace("$i", "1") for word in command[1:]])
        load_run_config(ROOT / options.config, overrides)


def test_parts_are_named_as_prepare_wants_them() -> None:
    """The array counts from 1, and the indexed Job from 0."""
    found = re.findall(r"stellarbyte (prepare run.yaml [^\n']*)'", PAGE)
    assert len(found) == 3
    for text, expected in zip(found, ("7/64", None, "8/64"), strict=True):
        words = text.replace("$SLURM_ARRAY_TASK_ID", "7").replace("$((JOB_COMPLETION_INDEX + 1))", "8").split()
        options, overrides = build_parser().parse_known_args(words)
        assert not overrides and options.part == expected and options.merge == (None if expected else 64)
        assert expected is None or Part.parse(expected).count == 64
