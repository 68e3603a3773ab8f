"""Each corruption of an export makes the certificate fail, in the checks that it should fail in."""

import shutil

import pytest

import convert.certificate as certificates
from test_convert.mutations import MUTATIONS, make_run
from tiers import short_tier


@pytest.fixture(scope="module")
def sound(tokenizer, tmp_path_factory):
    """tied or not -> a run and its sound export; nobody may change them."""
    return {tied: make_run(tmp_path_factory.mktemp("sound"), tokenizer, tied=tied) for tied in (False, True)}


@pytest.mark.parametrize("tied", short_tier([False, True], 1))
def test_the_sound_export_passes(sound, tied, tmp_path):
    run, export = sound[tied]
    certificate = certificates.verify(run, shutil.copytree(export, tmp_path / "hf"))
    assert (certificate["verdict"], certificate["differences"]) == ("PASS", [])
    assert {check["result"] for check in certificate["checks"]} <= {"ok", "not checked"}


@pytest.mark.parametrize("mutation", short_tier(MUTATIONS, 0, 2, 3, 5, 7, 9), ids=lambda mutation: mutation.name)
def test_a_corruption_is_caught(sound, mutation, tmp_path):
    run, export = sound[mutation.tied]
    folder = shutil.copytree(export, tmp_path / "hf")
    mutation.corrupt(folder)
    certificate = certificates.verify(run, folder)
    failed = {check["check"] for check in certificate["checks"] if check["result"] == "not ok"}
    assert certificate["verdict"] == "FAIL"
    assert failed >= set(mutation.found_by)
