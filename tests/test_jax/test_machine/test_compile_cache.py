"""Programs are kept where users expect it, unless they say otherwise or it cannot be."""

from pathlib import Path

import pytest

from stellarbyte_jax.machine.compile_cache import cache_settings, machine_name


def test_under_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, remark = cache_settings({"XDG_CACHE_HOME": str(tmp_path)})
    folder = tmp_path / "stellarbyte" / "compiled" / machine_name()
    assert settings == {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 2**30)}
    assert remark is None and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for environment in ({}, {"XDG_CACHE_HOME": "relative"}):
        settings, _ = cache_settings(environment)
        assert settings["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/home/.cache/stellarbyte/compiled/{machine_name()}"


def test_what_the_user_says_stands(tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    for theirs in ({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, {"JAX_ENABLE_COMPILATION_CACHE": "False"}):
        assert cache_settings(home | theirs) == ({}, None)
    assert not list(tmp_path.iterdir())
    settings, _ = cache_settings(home | {"JAX_COMPILATION_CACHE_MAX_SIZE": "7"})
    assert settings["JAX_COMPILATION_CACHE_MAX_SIZE"] == "7"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "stellarbyte").write_text("")
    settings, remark = cache_settings({"XDG_CACHE_HOME": str(tmp_path)})
    assert settings == {}
    assert remark is not None and "are not kept for the next start (Not a directory)" in remark


def test_programs_cut_short_are_taken_out(tmp_path: Path) -> None:
    folder = tmp_path / "stellarbyte" / "compiled" / machine_name()
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "half-cache", "lost-atime"):
        (folder / name).write_text("program")
    for name in ("lost-cache", ".lockfile"):
        (folder / name).write_text("")
    cache_settings({"XDG_CACHE_HOME": str(tmp_path)})
    assert sorted(path.name for path in folder.iterdir()) == [".lockfile", "lost-atime", "whole-atime", "whole-cache"]
