"""The one program: its help, what is said where a library is missing, whose models it takes, and its completion."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.door import COMMANDS, CommandParser, main

HEAVY = ("jax", "flax", "numpy", "orbax", "yaml", "rich", "torch", "transformers", "tokenizers", "pyarrow")

CapSys = pytest.CaptureFixture[str]


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def complaint(capsys: CapSys, *arguments: object) -> str:
    """What a command that must be refused says, once it is known to be one sentence."""
    try:
        code: Any = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("stellarbyte: error: ") and said.count("\n") == 1, said
    return said


def test_help_names_each_command_and_none_of_them_loads_anything_heavy() -> None:
    # The help of config tells of the fields, whose defaults it writes as YAML; a test of the fields keeps that light.
    names = [name for name in COMMANDS if name != "config"]
    words = [["--help"], ["--version"], *([name, "--help"] for name in names), ["convert", "to-hf", "--help"]]
    done = python(f"""
import sys
from stellarbyte.door import main
for arguments in {words}:
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0, arguments
print([name for name in {HEAVY} if name in sys.modules])
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    top = done.stdout[: done.stdout.index("stellarbyte 0.")]
    assert all(f"\n  {command.name:<12}{command.summary}\n" in top for command in COMMANDS.values())
    assert "--max-new-tokens" in done.stdout and "--max-shard-size" in done.stdout
    assert max(map(len, top.splitlines())) <= 80


def test_version_tells_what_a_report_of_a_bug_needs(capsys: CapSys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("stellarbyte 0.") and "jax " in said and "torch " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["pretrian"], "argument COMMAND: invalid choice: 'pretrian'"),
        (["info"], "the following arguments are required: FOLDER"),
        (["info", ".", "--jsno"], "unrecognized arguments: --jsno"),
        (["generate", "--prompt", "x"], "the following arguments are required: MODEL"),
        (["generate", "--prompt", "x", "--draft-tokens", "3", "m", "--what"], "unrecognized arguments: --what"),
        (["chat", "nowhere"], "nowhere is not there: name a folder"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: CapSys) -> None:
    assert words in complaint(capsys, *arguments)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, file, content in (
        ("run", "config.yaml", "model: {hidden_size: 8}\n"),
        ("tuning", "config.yaml", "model: hf\ndata: {sources: []}\n"),
        ("hf", "config.json", '{"model_type": "llama"}'),
        ("peft", "adapter_config.json", "{}"),
        ("shards", "manifest.json", "{}"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "tuning" / "adapter").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "shards", "--prompt", "x"], "shards holds no model: name a run, or a Hugging Face folder"),
        (["chat", "tuning"], "tuning is a fine-tuning run: name what it has made, tuning/adapter"),
        (["chat", "peft"], "peft is an adapter: name its base, and chat with --adapter peft"),
        (["chat", "run", "--adapter", "peft"], "--adapter is for Hugging Face folders, and run is a run: leave it out"),
        (["generate", "run", "--prompt", "x", "--device", "cpu"], "--device is for Hugging Face folders, and run is"),
        (["chat", "run", "--dtype", "float16"], "--dtype float16 is for Hugging Face folders, and run is a run"),
        (["generate", "hf", "--prompt", "x", "--draft", "run"], "--draft is for runs, and hf is a Hugging Face folder"),
        (
            ["chat", "run", "--quantize", "int8-dynamic"],
            "--quantize int8-dynamic is for Hugging Face folders, and run ",
        ),
        (["generate", "hf", "--prompt", "x", "--kv-cache-dtype", "int8"], "--kv-cache-dtype is for runs, and hf is a "),
        (["generate", "hf", "--draft-tokens", "4", "--prompt", "x"], "--draft-tokens is for runs, and hf is a Hugging"),
        (["generate", "--prompt", "x", "hf"], "hf holds a model that cannot be loaded: "),
    ],
)
def test_whose_model_it_is(
    arguments: list[str], words: str, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    monkeypatch.chdir(folders)
    assert words in complaint(capsys, *arguments)


def test_what_is_not_installed_is_named_with_its_extra(folders: Path) -> None:
    """Each command of a host that has neither wing's libraries; what needs none of them works."""
    jax = [["pretrain", "c.yaml"], ["plan", "c.yaml", "--topology", "v5e:2x2"], ["evaluate", "run"]]
    jax += [["prune", "run", "out", "--keep", "90%"], ["generate", "run", "--prompt", "x"], ["chat", "run"]]
    jax += [["convert", "to-hf", "run", "out"], ["convert", "from-hf", "hf", "out"], ["convert", "verify", "run", "hf"]]
    jax += [["convert", "adapter", "to-peft", "run", "out"], ["config", "c.yaml"]]
    torch = [["generate", "hf", "--prompt", "x"], ["chat", "hf"], ["finetune", "c.yaml"], ["data", "preview", "c.yaml"]]
    torch += [["merge", "hf", "peft", "out"], ["config", "--help", "finetune.lora"]]
    (folders / "c.yaml").write_text(
        "output_dir: out\nmodel: {vocab_size: 300, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"
        "data: {sources: [{path: x}], tokenizer: t, shards: s, sequence_length: 8}\n"
        "training: {max_steps: 200, batch_size: 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", _BARE, json.dumps(jax + torch)], capture_output=True, text=True, cwd=folders, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(jax + torch) + 2, done.stderr
    for line, _ in zip(said, jax, strict=False):
        assert line.endswith("is not installed: pip install 'stellarbyte[jax]'"), line
    for line in said[len(jax) : -2]:
        assert line.endswith("is not installed: pip install 'stellarbyte[torch]'"), line
    for line in said[-2:]:
        assert "is not installed: pip install 'stellarbyte[torch]', or take JAX's from stellarbyte_jax" in line
    assert not (folders / "out").exists()


def test_config_checks_shows_and_explains(capsys: CapSys, tmp_path: Path) -> None:
    quickstart = str(Path(__file__).parents[2] / "configs" / "run" / "quickstart.yaml")
    assert main(["config", quickstart, "--training.max_steps", "700"]) == 0
    said = capsys.readouterr().out
    assert "  max_steps: 700\n" in said and "  remat: none\n" in said and "\nshapes\n" in said
    assert main(["config", quickstart, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["model"]["hidden_size"] == 256 and found["report"]["shapes"]["parameters"] == 3262208
    assert "training.max_step" in complaint(capsys, "config", quickstart, "--training.max_step", "7")
    tuning = str(Path(quickstart).parents[1] / "finetune" / "quickstart.yaml")
    assert main(["config", tuning, "--json", "--output_dir", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["training"]["steps"] == 100
    assert not (tmp_path / "run").exists()
    for path, words in (("data.sources.path", "data.sources.path: str; required"), ("finetune.lora.r", "r: int; ")):
        with pytest.raises(SystemExit) as stop:
            main(["config", "--help", path])
        assert stop.value.code == 0 and words in capsys.readouterr().out
    assert "did you mean training.remat?" in complaint(capsys, "config", "--help", "training.remta")
    with pytest.raises(SystemExit):
        main(["config", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: stellarbyte config") and "\n  checkpoint   When the run is saved" in said


def test_short_names_are_pytorchs() -> None:
    import stellarbyte_torch
    from stellarbyte import ByteConfig, ByteModel
    from stellarbyte.lora import apply_lora_to_model
    from stellarbyte_torch.lora import apply_lora_to_model as theirs

    assert (ByteConfig, ByteModel) == (stellarbyte_torch.ByteConfig, stellarbyte_torch.ByteModel)
    assert apply_lora_to_model is theirs


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(capsys: CapSys, tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        script = f"""
source completion
COMP_WORDS=({" ".join(words)} "") COMP_CWORD={len(words)}
[ "${{COMP_WORDS[-2]:0:2}}" != -- ] || {{ unset 'COMP_WORDS[-1]'; COMP_CWORD=$((COMP_CWORD - 1)); }}
$(complete -p stellarbyte | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
        return done.stdout.split()

    assert {"pretrain", "finetune", "convert", "info"} <= set(completed("stellarbyte"))
    assert {"to-hf", "from-hf", "verify", "adapter"} <= set(completed("stellarbyte", "convert"))
    assert completed("stellarbyte", "generate", "--draft") == ["--draft", "--draft-tokens"]


def test_options_are_no_abbreviations() -> None:
    """`--training.max_steps` and an option that begins alike must not be taken for each other."""
    parser = CommandParser(prog="stellarbyte x")
    parser.add_argument("--profile")
    assert parser.parse_known_args(["--prof", "3"])[1] == ["--prof", "3"]


_BARE = """
import json, sys
from importlib.abc import MetaPathFinder

extras = {"jax", "jaxlib", "ml_dtypes", "flax", "optax", "orbax", "grain", "safetensors", "torch", "transformers"}

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in extras:
            raise ModuleNotFoundError(f"No module named {name}", name=name)

sys.meta_path.insert(0, Missing())
from stellarbyte.door import main

for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 2, arguments
assert main(["info", "shards"]) == 0
for package, name in (("stellarbyte", "ByteModel"), ("stellarbyte.lora", "apply_lora_to_model")):
    try:
        getattr(__import__(package, fromlist=["x"]), name)
    except ImportError as error:
        print(error, file=sys.stderr)
"""
