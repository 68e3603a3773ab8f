"""The rooms keep to themselves: who may import whom, and what an import costs."""

import json
import subprocess
import sys
from pathlib import Path

import grimp

from stellarbyte.door import COMMANDS

ROOT = Path(__file__).parents[2]


def test_import_rules() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", program, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_ground_holds_what_more_than_one_wing_needs() -> None:
    """A module stands there if two of the wings and the converter need it, or the program's own commands do."""
    graph = grimp.build_graph("stellarbyte", "stellarbyte_jax", "stellarbyte_torch", "convert", cache_dir=None)
    program = {"stellarbyte", *(f"stellarbyte.{name}" for name in ("__main__", "cli", "completion", "door", "lora"))}
    program |= {command.door.partition(":")[0] for command in COMMANDS.values()}

    def users(module: str) -> set[str]:
        seen, found, todo = {module}, set(), [module]
        while todo:
            for user in graph.find_modules_that_directly_import(todo.pop()) - seen:
                seen.add(user)
                room = "the program" if user in program else user.partition(".")[0]
                if room == "stellarbyte":
                    todo.append(user)
                else:
                    found.add(room)
        return found

    packages = {module for module in graph.modules if graph.find_children(module)}
    ground = {module for module in graph.modules if module.startswith("stellarbyte.")} - program - packages
    found = {module: users(module) for module in sorted(ground)}
    assert not {module: by for module, by in found.items() if len(by) < 2 and by != {"the program"}}


def test_what_an_import_loads() -> None:
    """In one process, the light ones first: none may have loaded by then what the next must do without."""
    frameworks = ["jax", "flax", "torch", "transformers"]
    statements = [
        ("import stellarbyte_jax", [*frameworks, "numpy"]),
        ("from stellarbyte_jax import ByteConfig", [*frameworks, "numpy"]),
        ("import stellarbyte_jax.config_file", [*frameworks, "numpy"]),
        ("import stellarbyte_jax.cli", [*frameworks, "orbax"]),
        ("import stellarbyte_torch", [*frameworks, "orbax"]),
        ("import stellarbyte_torch.cli", [*frameworks, "peft"]),
        ("import convert", ["jax", "torch", "transformers"]),
        ("from stellarbyte_jax import ByteModel", ["torch", "transformers", "orbax"]),
        ("import convert.cli", ["torch", "transformers"]),
        ("import stellarbyte_jax.checkpoints.checkpoint", ["torch", "transformers"]),
    ]
    program = """
import json, sys
for statement, unwanted in json.loads(sys.argv[1]):
    exec(statement)
    assert not set(unwanted) & set(sys.modules), (statement, set(unwanted) & set(sys.modules))
"""
    command = [sys.executable, "-c", program, json.dumps(statements)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
