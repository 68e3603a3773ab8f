"""Checks a run's config and tells what the run would find here; nothing is made or changed."""

from collections.abc import Sequence
from pathlib import Path

from stellarbyte.config.dry_run import DryRun
from stellarbyte_jax.config_file import load_run_config


def dry_run(path: Path, overrides: Sequence[str] = ()) -> DryRun:
    """The config in a YAML file with overrides, and a report about data, tokenizer, mesh, shapes and checkpoints.

    A mistake in the config itself is refused; what is wrong with files and devices here is a warning in the report.

    Raises:
        UserError: as load_run_config and report_on.
    """
    config = load_run_config(path, overrides)
    # JAX is imported only now: a mistake in the config need not wait for it.
    from stellarbyte_jax.planning.run_report import report_on

    return report_on(config)
