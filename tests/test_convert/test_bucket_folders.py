"""Exports in a bucket: there and back by command, and what an upload may replace."""

import pytest

from convert import run_checkpoint
from convert.bucket_folders import read_here, written_there
from memory_bucket import use_memory
from stellarbyte import bucket_lock, places
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.files import write_json, write_text
from stellarbyte.places import place
from test_convert.models import bits


@pytest.fixture
def memory(monkeypatch):
    """A folder in a bucket in memory."""
    use_memory(monkeypatch)
    return place("gs://runs/model")


def export(folder, force=False, **files):
    with written_there(folder, force) as here:
        here.mkdir()
        for name, text in {"config.json": "{}", **files}.items():
            write_text(here / name, text)
        write_json(here / "stellarbyte_export.json", {"files": dict.fromkeys(("config.json", *files), "")})


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def test_an_export_replaces_an_export_alone(memory):
    export(memory, **{"model-00001-of-00002.safetensors": "a"})
    export(memory, **{"model.safetensors": "b"})
    assert names(memory) == {"config.json", "stellarbyte_export.json", "model.safetensors"}
    (memory / "notes.txt").write_bytes(b"mine")
    (memory / "model-00001-of-00009.safetensors").write_bytes(b"another's")
    with pytest.raises(UserError, match=r"gs://runs/model holds model-00001-of-00009\.safetensors and 1 more"):
        export(memory)
    export(memory, force=True, **{"model.safetensors": "c"})
    assert names(memory) == {"config.json", "stellarbyte_export.json", "model.safetensors", "notes.txt"}
    with read_here(memory) as here:
        assert here.name == "model" and (here / "model.safetensors").read_text() == "c"
    assert not here.exists()
    with pytest.raises(UserError, match="gs://runs/none holds no files"), read_here(place("gs://runs/none")):
        pass


def test_half_an_export_is_no_model(memory, monkeypatch):
    export(memory, **{"model.safetensors": "a"})
    upload, uploaded = places.BucketPath.upload, []

    def fail_at_the_second(self, file):
        uploaded.append(self.name)
        if len(uploaded) == 2:
            raise UserError("away")
        upload(self, file)

    monkeypatch.setattr(places.BucketPath, "upload", fail_at_the_second)
    with pytest.raises(UserError, match="away"):
        export(memory, **{"model.safetensors": "b", "a.json": "{}"})
    assert "config.json" not in names(memory)
    assert bucket_lock.NAME not in names(memory)


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_there_and_back_by_command(bucket, run_dir, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hf, back = f"{bucket}/hf", f"{bucket}/back"
    assert main(["convert", "to-hf", str(run_dir), hf, "--max-shard-size", "20KB"]) == 0
    assert main(["convert", "to-hf", str(run_dir), hf]) == 0
    assert main(["convert", "from-hf", hf, back]) == 0
    assert main(["convert", "from-hf", hf, back]) == 2
    assert f"{back} exists already" in capsys.readouterr().err
    assert main(["convert", "verify", back, hf]) == 0
    assert bits(run_checkpoint.load(place(back)).params) == bits(run_checkpoint.load(run_dir).params)
    assert main(["convert", "to-hf", back, "again"]) == 0
    assert main(["generate", hf, "--prompt", "x"]) == 2
    assert "Hugging Face folders are read from this machine" in capsys.readouterr().err
    assert main(["generate", back, "--prompt", "x", "--max-new-tokens", "2"]) == 0
    assert main(["info", hf]) == 0
    assert "22,012" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["again"]
