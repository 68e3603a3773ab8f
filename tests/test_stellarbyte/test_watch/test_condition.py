"""A run's state follows from its lock, its log and its records."""

from typing import Any

import pytest

from stellarbyte.watch.condition import condition

BEGINS = "2026-12-01T14:39:11+00:00 info 0: process 7 on host begins"
DONE = "2026-12-01T14:39:11+00:00 info 0: 460 steps done; checkpoints, config and metrics in runs/x"
STOPPED = "2026-12-01T14:39:11+00:00 info 0: stopped after step 7, saved in runs/x: the same command goes on from there"
ENDED = "2026-12-01T14:39:11+00:00 error 0: ended: the disk is full"
CRASHED = [
    "2026-12-01T14:39:11+00:00 error 0: Traceback (most recent call last):",
    '2026-12-01T14:39:11+00:00 error 0:   File "x.py", line 3, in f',
    "2026-12-01T14:39:11+00:00 error 0: KeyError: 'x'",
]
SOUND: dict[str, Any] = {
    "there": True,
    "holder": None,
    "log": [BEGINS],
    "last_step": 7,
    "recorded": True,
    "max_steps": 460,
    "finished": False,
    "silent_seconds": 5.0,
    "patience": 120.0,
}
LIVE, GONE = {"pid": 7, "gone": False}, {"pid": 7, "gone": True}


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"there": False, "log": [], "recorded": False, "last_step": 0}, "waiting", ""),
        ({"recorded": False, "holder": LIVE}, "starting", ""),
        ({"holder": LIVE}, "running", ""),
        ({"holder": LIVE, "silent_seconds": 121}, "stuck", ""),
        ({"holder": LIVE, "log": [BEGINS, ENDED, BEGINS]}, "running", ""),
        ({"log": [BEGINS, DONE], "last_step": 460}, "done", ""),
        ({"log": [BEGINS, DONE]}, "done", ""),  # early
        ({"log": [], "last_step": 460}, "done", ""),
        ({"finished": True, "max_steps": None}, "done", ""),  # fine-tuning
        ({"finished": True, "log": [BEGINS, STOPPED]}, "stopped", "stopped after step 7"),
        ({"log": [BEGINS, STOPPED]}, "stopped", "stopped after step 7, saved in runs/x: the same command goes on"),
        ({"log": [BEGINS, ENDED]}, "failed", "the disk is full"),
        ({"log": [BEGINS, DONE, BEGINS, *CRASHED]}, "failed", "KeyError: 'x'"),
        ({"log": [BEGINS, ENDED, BEGINS, STOPPED]}, "stopped", "stopped after step 7"),
        ({"log": [BEGINS, "2026 error 0: absl: a library's word", DONE]}, "done", ""),
        ({"log": [BEGINS, DONE, ENDED]}, "failed", "the disk is full"),
        ({"holder": GONE}, "failed", ""),  # killed: its lock stays behind
        ({"log": ["no line of ours"]}, "stopped", ""),
        ({"log": [], "recorded": False, "last_step": 0}, "waiting", ""),
    ],
)
def test_states(changes: dict[str, Any], state: str, words: str) -> None:
    found = condition(**SOUND | changes)
    assert found.state == state and found.words.startswith(words) and bool(words) == bool(found.words)
