import io
import logging
import re

import pytest
from rich.console import Console

from stellarbyte.display import Display

LINE = "50 records: 40 training and 10 validation samples, 1963 tokens, 328 (17%) of them trained"


@pytest.mark.parametrize("width", [30, 60, 120])
def test_a_terminal_breaks_lines_between_words_alone(width: int) -> None:
    output = io.StringIO()
    Display(console=Console(file=output, force_terminal=True, width=width, highlight=False)).say(LINE)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert " ".join(lines) == LINE
    assert all(len(line) <= width for line in lines)


def test_elsewhere_a_line_is_a_line() -> None:
    output = io.StringIO()
    display = Display(console=Console(file=output, width=20, highlight=False))
    with display, display.doing("validating") as progress:
        progress(1, 3)
        display.say(LINE)
        display.update(2, 9, ["loss 1.0000", "7 tokens/s"], None)
    assert output.getvalue() == f"{LINE}\nstep 2/9  loss 1.0000  7 tokens/s  ETA -:--:--\n"


def shown(width: int, **arguments: int) -> tuple[Display, io.StringIO]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, highlight=False, color_system=None)
    return Display(console=console, **arguments), output


def text_of(output: io.StringIO) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", output.getvalue()).splitlines()]


def test_bars_for_steps_epochs_and_what_has_a_length() -> None:
    display, output = shown(100)
    with display, display.doing("validating") as progress:
        display.begin(0, 9)
        progress(1, 4)
        display.update(2, 9, ["loss 1.0000", "7 tokens/s"], 61.0, (1.25, 5.0))
    lines = text_of(output)
    assert any(re.fullmatch(r"\W*step 2/9 +━+[╸ ━]+ 0:00:00, ETA 0:01:01", line) for line in lines)
    assert any(re.fullmatch(r" *epoch 2 +━+[╸ ━]+ 1.25 of 5.00", line) for line in lines)
    assert any(re.fullmatch(r" *validating 1/4 +━+[╸ ━]+ 0:00:00", line) for line in lines)
    assert "loss 1.0000  7 tokens/s" in lines


def test_a_narrow_terminal_gets_plain_lines() -> None:
    display, output = shown(59)
    with display, display.doing("validating") as progress:
        assert not display.live
        display.begin(0, 9)
        progress(1, 4)
        words = ["loss 1.0000", "perplexity 2.72", "accuracy 0.500", "gradient 1.50"]
        display.update(2, 9, words, 61.0, (1.25, 5.0))
        display.report("step 2/9  validation  loss 1.0000", "validation", [("loss", "1.0000")])
    assert text_of(output) == [
        "step 2/9  loss 1.0000  perplexity 2.72  accuracy 0.500",
        "gradient 1.50  ETA 0:01:01",
        "step 2/9  validation  loss 1.0000",
    ]
    assert "\x1b" not in output.getvalue()


def test_a_table_stands_for_its_line() -> None:
    display, output = shown(80)
    said: list[tuple[int, str]] = []
    display.record_in(lambda level, text: said.append((level, text)))
    with display:
        display.report("validation  loss 1.0000", "validation at step 2/9", [("loss", "1.0000", "-0.5 better", "")])
    assert {"validation at step 2/9", "  loss  1.0000  -0.5 better"} <= set(text_of(output))
    assert "validation  loss 1.0000" not in output.getvalue()
    assert said == [(logging.INFO, "validation  loss 1.0000")]


def test_the_last_words_end_the_bars() -> None:
    display, output = shown(80)
    with display:
        display.update(9, 9, ["loss 1.0000"], 0.0)
        display.end("9 steps done")
        display.update(9, 9, ["loss 1.0000"], 0.0)
    assert text_of(output)[-1] == "9 steps done" or text_of(output)[-2:] == ["9 steps done", ""]


def test_levels_and_the_voice_of_another_process() -> None:
    display, output = shown(100, level=logging.WARNING)
    with display:
        assert not display.live
        display.update(1, 2, ["loss"], None)
        display.say("a line")
        display.say("warning: odd")
        display.speak_as(0, speaks=True)
        display.say("warning: odd again")
        display.speak_as(3, speaks=True)
        display.say("warning: odd here")
        display.speak_as(3, speaks=False)
        display.say("warning: not heard")
    assert text_of(output) == ["warning: odd", "warning: odd again", "process 3: warning: odd here"]
