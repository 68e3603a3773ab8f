"""A run that was moved is told from a new one."""

from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.run_folder import check_not_moved, moved_along


@pytest.mark.parametrize(
    ("path", "expected"),
    [("runs/a/shards", "moved/b/shards"), ("runs/shards", "moved/shards"), ("runs/a", "moved/b"), ("data", "data")],
)
def test_what_lay_beside_a_run_lies_beside_it_again(path: str, expected: str) -> None:
    assert moved_along(path, "runs/a", Path("moved/b")) == Path(expected)


def test_the_config_of_a_moved_run_starts_no_new_run(tmp_path: Path) -> None:
    here = tmp_path / "moved"
    (here / "checkpoints").mkdir(parents=True)
    (here / "shards").mkdir()
    folders = {"data.shards": str(tmp_path / "old" / "shards"), "data.tokenizer": str(tmp_path / "old" / "tokenizer")}
    with pytest.raises(UserError, match=r"was moved here from output_dir .*old: go on with it by") as refused:
        check_not_moved(here / "config.yaml", str(tmp_path / "old"), folders)
    assert f"--output_dir {here} --data.shards {here / 'shards'}`" in str(refused.value)
    check_not_moved(here / "config.yaml", str(here), folders)
    check_not_moved(here / "other.yaml", str(tmp_path / "old"), folders)
    (tmp_path / "old").mkdir()
    check_not_moved(here / "config.yaml", str(tmp_path / "old"), folders)
