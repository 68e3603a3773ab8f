"""Finds the token shards that a run was trained on, even if they or the run were moved since."""

import dataclasses
import sys
from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.places import Place, is_remote, place
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.run_folder import moved_along


def with_own_shards(
    config: RunConfig, known: DataIdentity | None, run_dir: Place, tokenizer: Tokenizer, named: str | None
) -> tuple[RunConfig, Manifest]:
    """(the config with the present folder of the token shards, their manifest); tells the user of changes on stderr.

    It looks into the folder that the config names, then into the folder where this is if it was moved with the run.

    Args:
        config: the run's config, from its checkpoint.
        known: the identity of the run's data, from its checkpoint; None if that has none.
        run_dir: the run's present folder.
        tokenizer: the run's tokenizer.
        named: another folder that the user asks for; its data may be other than the run's.

    Raises:
        UserError: no folder holds finished token shards, or they were made with another tokenizer, or they are not of
            the run's data although the user did not ask for others.
    """
    if named is not None:
        manifest = Manifest.load(place(named))
        _check_tokenizer(manifest, named, tokenizer, run_dir)
        changed = None if known is None else DataIdentity.of(manifest).differences(known)
        if changed is not None:
            _say(f"--data.shards {named} holds other data than {run_dir} was trained on: {changed}")
        return _with(config, manifest, named)

    folders = [config.data.shards]
    if not any(map(is_remote, (config.data.shards, config.output_dir, run_dir))):
        folders.append(str(moved_along(config.data.shards, config.output_dir, Path(str(run_dir)))))
    folders = list(dict.fromkeys(folder for folder in folders if (place(folder) / "manifest.json").is_file()))
    if not folders:
        raise UserError(
            f"data.shards {config.data.shards} of {run_dir} holds no finished token shards: name the folder they were "
            "moved to with --data.shards"
        )
    manifests = {folder: Manifest.load(place(folder)) for folder in folders}
    changes = {
        folder: None if known is None else DataIdentity.of(manifest).differences(known)
        for folder, manifest in manifests.items()
    }
    own = next((folder for folder in folders if changes[folder] is None), None)
    if own is None:
        _check_tokenizer(manifests[folders[0]], folders[0], tokenizer, run_dir)
        raise UserError(
            f"data.shards {folders[0]} holds other data than {run_dir} was trained on ({changes[folders[0]]}): name "
            "the run's own shards with --data.shards, or these if others are meant"
        )
    _check_tokenizer(manifests[own], own, tokenizer, run_dir)
    if own != config.data.shards:
        _say(f"the run's token shards are in {own} now")
    return _with(config, manifests[own], own)


def _check_tokenizer(manifest: Manifest, folder: str, tokenizer: Tokenizer, run_dir: Place) -> None:
    if manifest.recipe.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"data.shards {folder} was made with another tokenizer than that of {run_dir}: prepare it again"
        )


def _with(config: RunConfig, manifest: Manifest, folder: str) -> tuple[RunConfig, Manifest]:
    if manifest.warning is not None:
        _say(f"warning: {manifest.warning}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=folder)), manifest


def _say(text: str) -> None:
    print(f"stellarbyte: {text}", file=sys.stderr)
