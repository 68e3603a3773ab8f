from stellarbyte.terminal_text import harmless


def test_control_characters_are_spelt_out_and_text_stays() -> None:
    assert harmless("\x1b[31mred\x07\r\x9b\x7f\x00") == r"\x1b[31mred\x07\x0d\x9b\x7f\x00"
    text = "two\nlines\tand 春眠 🚀 é\N{NO-BREAK SPACE}"
    assert harmless(text) == text
