"""The options for what is said, and where."""

import argparse

import pytest

from stellarbyte.log_settings import LogSettings, log_options, log_settings


def settings(*words: str) -> LogSettings:
    parser = argparse.ArgumentParser()
    log_options(parser)
    return log_settings(parser.parse_args(words))


def test_options() -> None:
    assert settings() == LogSettings("info", "info", (0,))
    assert settings("--log-level", "warning", "--log-file-level", "none", "--log-processes", "0,3") == LogSettings(
        "warning", "none", (0, 3)
    )
    assert [settings("--log-processes", "all").includes(index) for index in (0, 7)] == [True, True]
    assert [settings("--log-processes", "0,3").includes(index) for index in (0, 1, 3)] == [True, False, True]


@pytest.mark.parametrize("words", [["--log-level", "loud"], ["--log-processes", "first"], ["--log-processes", "0,,1"]])
def test_mistakes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings(*words)
    assert words[0] in capsys.readouterr().err
