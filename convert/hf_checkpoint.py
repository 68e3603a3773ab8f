"""Converts whole checkpoints between a run directory and a Hugging Face folder."""

import importlib.util
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from convert import config as hf_config
from convert import (
    exported_tokenizer,
    given_weights,
    hf_folder,
    layer_scale,
    model_card,
    run_checkpoint,
    run_facts,
    shards,
    staged_folder,
    weights,
)
from convert.families import config_json, fit
from convert.families.registry import FAMILIES
from convert.families.tensors import to_stock
from convert.given_folder import check_links
from convert.run_checkpoint import RunCheckpoint, Step
from convert.shards import Progress
from stellarbyte.errors import UserError
from stellarbyte.file_manifest import check_files
from stellarbyte.files import sha256_of_json, write_json, write_text
from stellarbyte.journal import Journal
from stellarbyte.places import Place
from stellarbyte.staged_folder import staged
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.tokenizer import Tokenizer

EXPORT_DTYPES = ("float32", "bfloat16", "float16")

# The files of stellarbyte_torch in an export, so that it loads where StellarByte is not installed.
_MODELING_FILES = ("configuration_stellarbyte.py", "modeling_stellarbyte.py")


@dataclass(frozen=True)
class Conversion:
    """A summary of a conversion: the step in the run, and how many parameters and bytes the weights have.

    zeros: the number of weights that are zero only because they are too small for the export's dtype.
    """

    step: int
    parameters: int
    nbytes: int
    zeros: int = 0


def to_hf(
    run_dir: Place,
    hf_dir: Path,
    *,
    step: Step | None = None,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    force: bool = False,
    fold_layer_scale: bool = False,
    ema: bool = False,
    family: str | None = None,
    license_id: str | None = None,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Writes a run's checkpoint as a folder that transformers loads; needs neither torch nor transformers.

    Args:
        run_dir: the output_dir of a run, or a run directory that `from_hf` made.
        hf_dir: the folder to write. It is written beside its place, then renamed; an earlier export is replaced. What
            an interrupted call of the same arguments has written is not written again.
        step: the step of the checkpoint, or "best" by the run's validations; the newest by default.
        dtype: the dtype of the weights, one of `EXPORT_DTYPES`. float32 is exact; float16 is refused where weights are
            outside its range.
        max_shard_size: the largest size of one file, such as "5GB".
        force: whether to replace the files of a model in `hf_dir` that no export wrote; other files stay in any case.
        fold_layer_scale: whether to multiply LayerScale into the projections before it. The export then has no
            LayerScale and computes the same function up to rounding, with weights that are not the run's own.
        ema: whether to export the moving average of the weights that training.ema_decay keeps.
        family: the name in `FAMILIES` of the stock architecture to export the model as, with LayerScale folded in and
            pruned heads gone; our own by default.
        license_id: the licence for the model card, by its identifier on the Hub.
        progress: is called with the bytes written and the bytes in all.

    Raises:
        UserError: there is no such checkpoint, its weights are not those of its model or no finite numbers, `hf_dir`
            holds files that no export wrote, there is no LayerScale to fold, the model is none of `family`, or the disk
            is full.
    """
    shard_bytes = shards.parse_size(max_shard_size)
    run_facts.check_license(license_id)
    hf_dir = hf_dir.resolve()
    keep = staged_folder.check_replaceable(hf_dir, force)
    checkpoint = run_checkpoint.load(run_dir, step, ema=ema)
    where = f"the checkpoint of step {checkpoint.step} in {run_dir}"
    config, stock = checkpoint.config, None if family is None else FAMILIES[family]
    zeros: dict[str, int] = {}
    if stock is not None:
        fit.check_fits(stock, config, where)
        fold_layer_scale |= config.layer_scale_init is not None
    if fold_layer_scale:
        config = layer_scale.without_layer_scale(config, where)
        tensors = layer_scale.to_hf_folded(checkpoint.params, checkpoint.config, dtype, where, zeros)
    else:
        tensors = weights.to_hf(checkpoint.params, config, dtype, where, zeros)
    tensors = given_weights.finite(tensors, where)
    if stock is None:
        fields = hf_config.to_hf(config, dtype)
    else:
        config, tensors = fit.exported(config), to_stock(tensors, stock)
        fields = config_json.to_hf(stock, config, dtype)
    conversion = _describe(checkpoint.step, tensors)
    tokenizer_files = exported_tokenizer.for_hugging_face(checkpoint.tokenizer_files, config.context_length)
    checkpoint = replace(checkpoint, tokenizer_files=tokenizer_files)
    about = {"stellarbyte": version("stellarbyte"), "step": checkpoint.step, "dtype": dtype}
    about |= {"layer_scale": "folded into the projections"} if fold_layer_scale else {}
    about |= {"ema": True} if ema else {}
    about |= {"family": family} if family is not None else {}
    task = {"task": "to-hf", "of": checkpoint.source, **about, "max_shard_size": shard_bytes}
    with staged(hf_dir, keep, task=task) as folder:
        journal = Journal(folder, task)
        staged_folder.remove_others(folder, journal.done)
        origin = {name: str(about[name]) for name in ("stellarbyte", "step")}
        hashes = shards.write(tensors, folder, shard_bytes, progress, journal, origin)
        write_json(folder / hf_config.CONFIG, fields, sort_keys=True)
        write_json(folder / hf_config.GENERATION_CONFIG, hf_config.generation_to_hf(config), sort_keys=True)
        Tokenizer.save_files(tokenizer_files, folder)
        for path in modeling_files() if stock is None else ():
            shutil.copyfile(path, folder / path.name)
        facts = run_facts.read_facts(run_dir, checkpoint.step, has_figures=checkpoint.has_figures)
        has_picture = checkpoint.has_figures and run_facts.draw(run_dir, checkpoint.step, folder)
        card = model_card.render(
            hf_dir.name,
            checkpoint,
            dtype,
            conversion.parameters,
            facts,
            fold_layer_scale,
            stock,
            license_id,
            has_picture,
        )
        write_text(folder / "README.md", card)
        staged_folder.write_manifest(folder, about, hashes)
        journal.remove()
    return replace(conversion, zeros=sum(zeros.values()))


def from_hf(hf_dir: Path, run_dir: Place, progress: Progress = lambda *_: None) -> Conversion:
    """Makes a run directory of a Hugging Face folder: float32 parameters as step 0, config and tokenizer.

    The folder's model is ours or one of `FAMILIES`. What an interrupted call for the same folder has written is not
    written again. progress: is called with the bytes written and the bytes in all.

    Raises:
        UserError: the folder has another architecture; its weights are missing, unknown, misshapen, broken or not
            finite; it has no tokenizer that JAX can use, or one that does not fit; `run_dir` exists; the disk is full.
    """
    run_dir = run_dir.resolve()
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir} exists already: name a new run directory")
    check_links(hf_dir)
    check_files(hf_dir)
    model = hf_folder.read(hf_dir)
    config = model.config
    tokenizer = Tokenizer.load(hf_dir)
    tokenizer.check_fits(config.vocab_size)
    params = weights.from_hf(model.tensors, config, "float32", where=str(hf_dir))
    files = exported_tokenizer.for_a_run(tokenizer.files)
    of = [shards.identity(hf_dir), to_dict(config), dict(files), version("stellarbyte")]
    task = {"task": "from-hf", "of": sha256_of_json(of)}
    with staged(run_dir, task=task) as folder:
        journal = Journal(folder, task) if isinstance(folder, Path) else None  # in a bucket, it begins anew
        if journal is not None and journal.done:
            print(f"stellarbyte: going on: {len(journal.done)} parts of the checkpoint are there", file=sys.stderr)
        run_checkpoint.save(folder, RunCheckpoint(params, config, files, step=0), progress, journal)
        if journal is not None:
            journal.remove()
    return _describe(0, model.tensors)


def _describe(step: int, tensors: dict[str, weights.LazyTensor]) -> Conversion:
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Conversion(step, sum(tensor.nbytes // tensor.dtype.itemsize for tensor in tensors.values()), nbytes)


def modeling_files() -> list[Path]:
    """The two Python files that an export carries. They are found without importing them, as torch may be missing."""
    spec = importlib.util.find_spec("stellarbyte_torch")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    return [package / name for name in _MODELING_FILES]
