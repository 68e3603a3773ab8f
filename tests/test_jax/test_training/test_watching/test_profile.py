"""Traces hold the steps that were asked for, whole, and what there is of them where a run ends early."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.watching.diagnostics import Diagnostics, parse_profile
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.profile import Profile


def traces(run: Path) -> dict[str, list[int]]:
    """Session -> the numbers of the steps that its trace has annotated."""
    found = {}
    for file in (run / "profile").glob("plugins/profile/*/*.xplane.pb"):
        data = jax.profiler.ProfileData.from_file(str(file))
        events = [event for plane in data.planes for line in plane.lines for event in line.events]
        found[file.parent.name] = sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "must be START:STOP"),
        ("a:b", "must be START:STOP"),
        ("0:3", "begins with step 0: steps count from 1"),
        ("5:3", "ends before it begins: write 3:5"),
        ("10:13", r"ends after training\.max_steps 12: end with step 12 at most"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_profile(text, 12)


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_a_run_is_traced_interrupted_and_gone_on_with(
    run_config: Callable[..., RunConfig], disturb: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(training={"max_steps": 7, "eval_steps": 100})
    run = Path(config.output_dir)
    disturb(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert not pretrain(config, Diagnostics(parse_profile("3:6", 7)))
    assert traces(run) == {"steps-3-4": [3, 4]}
    said = capsys.readouterr().out
    assert f"profile of steps 3 to 4 in {run}/profile/plugins/profile/steps-3-4" in said
    assert f"xprof --logdir {run}/profile" in said

    with pytest.raises(UserError, match="holds a run that has done 4: begin with step 5 or later"):
        pretrain(config, Diagnostics(parse_profile("4:6", 7)))
    assert pretrain(config, Diagnostics(parse_profile("6:6", 7)))
    assert traces(run) == {"steps-3-4": [3, 4], "steps-6-6": [6]}
    assert sorted(entry.name for entry in (run / "profile").iterdir()) == ["plugins"]
    with pytest.raises(UserError, match="holds a run that has done 7: choose another output_dir"):
        pretrain(config, Diagnostics(parse_profile("7:7", 7)))


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, 2) as log, Profile((1, 1), tmp_path, log) as profile:
        profile.before(1, jnp.ones(()))
        (tmp_path / "profile" / "plugins").write_text("in the way")
        profile.after(1, jnp.ones(()))
        profile.before(2, jnp.ones(()))
        profile.after(2, jnp.ones(()))
    said = capsys.readouterr().out
    assert said.count("warning: the profile of steps 1 to 1 cannot be written") == 1

    (tmp_path / "file").write_text("")
    with MetricsLog(tmp_path, 0, 2) as log, pytest.raises(UserError, match="profile cannot be written"):
        Profile((1, 1), tmp_path / "file", log).__enter__()


def test_an_exception_in_a_traced_step_keeps_the_trace(tmp_path: Path) -> None:
    def fail() -> None:
        with MetricsLog(tmp_path, 0, 4) as log, Profile((2, 4), tmp_path, log) as profile:
            profile.before(2, jnp.ones(()))
            profile.after(2, jnp.ones(()))
            profile.before(3, jnp.ones(()))
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        fail()
    assert list(traces(tmp_path)) == ["steps-2-2"]


def test_a_run_that_begins_again_records_what_it_has_not_reached() -> None:
    asked = Diagnostics((10, 12), Path("dump"), ("a remark",))
    assert asked.after(9) == Diagnostics((10, 12))
    assert asked.after(10) == Diagnostics()
