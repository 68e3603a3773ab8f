"""Uploads an export to the Hugging Face Hub: its own files, and nothing else that lies in the folder."""

import re
from pathlib import Path
from typing import Any

from convert import export_files, staged_folder
from stellarbyte.errors import UserError, one_line, shown

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r"[\w.-]+")  # the Hub's library takes other names for patterns

_CARD = "README.md"  # people write it on

_LOGIN = "log in by `hf auth login`, or set HF_TOKEN to a token that may write"


def push(
    folder: Path, repo: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> tuple[str, int]:
    """Uploads an export into a model's repository, which is made if need be; returns (its address, number of files).

    The token, the endpoint and the rest are those of huggingface_hub: `hf auth login`, HF_TOKEN, HF_ENDPOINT. The Hub
    gets all files in one commit, or a large model in several; an upload that was interrupted goes on by the same call.

    Args:
        folder: a folder that `to-hf` wrote.
        repo: the repository, as user/name.
        private: whether a repository that is made is private.
        revision: the branch; the main one by default.
        message: the message of the commit.

    Raises:
        UserError: the folder is no export or has changed since, the name is none, or the Hub refuses.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"{shown(repo)} is no name of a repository: write user/name")
    names = exported_files(folder)
    hub = _import_hub()
    from huggingface_hub import errors

    api = hub.HfApi(library_name="stellarbyte")
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            revision=revision,
            commit_message=message or "Upload by stellarbyte",
        )
    except errors.HfHubHTTPError as error:
        raise UserError(f"{repo} cannot be written at {api.endpoint}: {_reason(error)}") from error
    except (errors.HTTPError, OSError, ValueError) as error:
        raise UserError(f"{repo} cannot be written at {api.endpoint}: {one_line(str(error))}") from error
    return f"{api.endpoint}/{repo}", len(names)


def exported_files(folder: Path) -> list[str]:
    """The names of the files that make up an export: what `to-hf` wrote, and what `verify` added.

    Raises:
        UserError: the folder is no export, a file is missing or a link, or one other than the card has changed.
    """
    manifest = staged_folder.read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} holds no {staged_folder.MANIFEST}: name a folder that `stellarbyte convert` wrote")
    names = [*manifest["files"], staged_folder.MANIFEST]
    names += [name for name in (staged_folder.CERTIFICATE, staged_folder.PICTURE) if (folder / name).exists()]
    for name in names:
        path = folder / name
        if not _FILE.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise UserError(f"{folder} lacks the file {shown(name)} of its export: export again")
    changed = [name for name in export_files.changed_since_export(folder) if name != _CARD]
    if changed:
        raise UserError(f"{folder / changed[0]} has changed since it was exported: export again")
    return names


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError("push needs the package huggingface_hub: pip install 'stellarbyte[hub]'") from error
    return huggingface_hub


def _reason(error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = one_line(getattr(error, "server_message", None) or str(error).splitlines()[0])
    if status == 401:
        return f"{said}; {_LOGIN}"
    if status == 403:
        return f"{said}; the token may not write there: {_LOGIN}"
    return said
