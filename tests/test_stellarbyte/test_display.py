import io

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
