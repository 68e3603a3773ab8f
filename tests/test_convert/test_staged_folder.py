"""Never half an export, and nothing lost that a user put there."""

import resource
import shutil

import pytest

from convert import hf_checkpoint, shards, staged_folder
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.staged_folder import staged


@pytest.fixture
def earlier(exported, tmp_path):
    """An earlier export, to be replaced."""
    return shutil.copytree(exported, tmp_path / "home" / "hf")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def siblings(folder):
    return [path.name for path in folder.parent.iterdir()]


def test_an_earlier_export_is_replaced_whole(run_dir, earlier):
    hf_checkpoint.to_hf(run_dir, earlier, max_shard_size="20KB")
    (earlier / "certificate.json").write_text("{}")
    assert not (earlier / shards.WEIGHTS).exists()
    hf_checkpoint.to_hf(run_dir, earlier)
    assert not list(earlier.glob("*-of-*"))
    assert not (earlier / "certificate.json").exists(), "it was another export's"
    assert siblings(earlier) == ["hf"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_replaced_and_the_link_stays(there, tmp_path):
    if there:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "old").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    with staged(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"link", "elsewhere"}


def test_an_empty_folder_is_filled(run_dir, tmp_path):
    (tmp_path / "hf").mkdir()
    hf_checkpoint.to_hf(run_dir, tmp_path / "hf")
    assert (tmp_path / "hf" / shards.WEIGHTS).exists()


def test_links_in_a_circle_are_refused_before_any_work(tmp_path):
    (tmp_path / "hf").symlink_to("hf")
    with pytest.raises(UserError, match="its links lead back to themselves"):
        staged_folder.check_replaceable(tmp_path / "hf", force=False)


def test_a_file_in_the_way_is_refused(run_dir, tmp_path):
    (tmp_path / "hf").write_text("mine")
    with pytest.raises(UserError, match="hf is a file"):
        hf_checkpoint.to_hf(run_dir, tmp_path / "hf")


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "model.safetensors"])
def test_what_a_user_added_or_changed_is_refused(run_dir, earlier, name):
    (earlier / name).write_text("mine")
    before = contents(earlier)
    with pytest.raises(UserError, match=f"holds {name}, which no export wrote.*--force"):
        hf_checkpoint.to_hf(run_dir, earlier)
    assert contents(earlier) == before


def test_a_folder_of_something_else_is_refused(run_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.jpg").write_text("mine")
    with pytest.raises(UserError, match="and 1 more"):
        hf_checkpoint.to_hf(run_dir, tmp_path)


def test_force_replaces_the_model_and_keeps_the_rest(run_dir, exported, earlier):
    (earlier / "notes").mkdir()
    (earlier / "notes" / "a.txt").write_text("mine")
    (earlier / "README.md").write_text("changed")
    (earlier / "model-00001-of-00002.safetensors").write_text("another model's")
    (earlier / shards.INDEX).write_text("{}")
    hf_checkpoint.to_hf(run_dir, earlier, force=True)
    assert (earlier / "notes" / "a.txt").read_text() == "mine"
    assert contents(earlier) == contents(exported)
    assert siblings(earlier) == ["hf"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError()])
def test_after_an_error_the_earlier_export_is_intact(run_dir, earlier, monkeypatch, error):
    def fail(*_):
        raise error

    before = contents(earlier)
    monkeypatch.setattr(staged_folder, "write_manifest", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        hf_checkpoint.to_hf(run_dir, earlier)
    assert contents(earlier) == before
    assert sorted(siblings(earlier)) == [".hf.partial", "hf"] if isinstance(error, OSError) else ["hf"]


def test_a_disk_that_cannot_take_the_weights(run_dir, earlier, python):
    before = contents(earlier)
    code = (
        "import resource, sys\n"
        "from stellarbyte.door import main\n"
        # Python ignores the signal, so that writing fails as on a full disk.
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (40000, {resource.RLIM_INFINITY}))\n"
        "code = main(['convert', 'to-hf', sys.argv[1], sys.argv[2]])\n"
        "print(code)\n"
    )
    assert python(code, earlier.parent, str(run_dir), str(earlier)) == "2\n"
    assert contents(earlier) == before
    assert siblings(earlier) == ["hf"]


def test_an_interruption_between_the_two_renames_is_undone(run_dir, earlier):
    aside = earlier.rename(earlier.parent / ".hf.old")
    (earlier.parent / ".hf.partial").mkdir()
    (earlier.parent / ".hf.partial" / "half").write_text("")
    hf_checkpoint.to_hf(run_dir, earlier)
    assert not aside.exists()
    assert siblings(earlier) == ["hf"]


def test_what_an_interrupted_export_set_aside_is_not_removed(run_dir, earlier):
    aside = earlier.parent / ".hf.old"
    aside.mkdir()
    (aside / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="interrupted command set aside"):
        hf_checkpoint.to_hf(run_dir, earlier)
    assert (aside / "notes.txt").read_text() == "mine"


def test_a_link_to_a_folder_stays_a_link(run_dir, earlier):
    link = earlier.parent / "link"
    link.symlink_to(earlier)
    hf_checkpoint.to_hf(run_dir, link)
    assert link.is_symlink()
    assert (link / shards.WEIGHTS).exists()


def test_a_folder_that_another_command_writes_is_refused(earlier):
    before = contents(earlier)
    refused = pytest.raises(UserError, match="is being written by process")
    with folder_lock(earlier, doing="merge"), refused, staged(earlier):
        pass
    assert contents(earlier) == before
    assert siblings(earlier) == ["hf"]
