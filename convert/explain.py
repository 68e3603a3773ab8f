"""Tells which of Transformers' own architectures a model can be exported as, and why not as the others."""

import shlex
from collections.abc import Mapping
from typing import Any

from convert import config as hf_config
from convert.families.fit import fits
from stellarbyte.architecture import ByteConfig
from stellarbyte.config.nodes import read_yaml
from stellarbyte.errors import UserError
from stellarbyte.places import Place, local
from stellarbyte_jax.config_file import load_model_config, load_run_config
from stellarbyte_jax.run_folder import model_files

_RUN_FIELDS = {"model", "data", "init_from"}


def explain(model: Place) -> dict[str, Any]:
    """Facts about a model's fit with each family, as JSON has them.

    Args:
        model: a run, a folder of Hugging Face's, or the YAML file of a run's or a model's config.

    Raises:
        UserError: there is no such model, or its config is refused.
    """
    is_run = (model / "checkpoints").is_dir()
    families = []
    for fit in fits(_config(model)):
        name = fit.family.model_type
        command = ["stellarbyte", "convert", "to-hf", str(model) if is_run else "RUN_DIR", "HF_DIR", "--as", name]
        families.append(
            {
                "family": name,
                "architecture": fit.family.architecture,
                "fits": not fit.misfits,
                "command": None if fit.misfits else shlex.join(command),
                "misfits": [{"field": m.field, "value": m.value, "reason": m.reason} for m in fit.misfits],
                "remarks": list(fit.remarks),
            }
        )
    return {"model": str(model), "families": families}


def explain_text(facts: Mapping[str, Any]) -> str:
    """The facts for people: a line for each family, and below it what is in the way or how it is exported."""
    lines = []
    for family in facts["families"]:
        lines.append(f"{family['family']:<12}{'yes' if family['fits'] else 'no'}")
        below = [misfit["reason"] for misfit in family["misfits"]] or [family["command"], *family["remarks"]]
        lines += [f"    {line}" for line in below]
    return "\n".join(lines)


def _config(model: Place) -> ByteConfig:
    if model.is_file():
        path = local(model, "MODEL", "the YAML file of a config has to be on this machine")
        return load_run_config(path).model if _RUN_FIELDS & set(read_yaml(path).value) else load_model_config(path)
    whole, alone = model_files(model)
    if whole.is_file():
        config = load_run_config(whole)
        if config.training.prune is None or not alone.is_file():
            return config.model
    if alone.is_file():
        return load_model_config(alone)
    if not model.is_dir() or not (model / hf_config.CONFIG).is_file():
        raise UserError(
            f"{model} is no run, no Hugging Face folder and no YAML file: name one, such as runs/my-run or "
            "configs/model/tiny.yaml"
        )
    return hf_config.read_hf(local(model, "MODEL", "a Hugging Face folder has to be on this machine to be explained"))
