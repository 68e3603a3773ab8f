"""The words of a page: each in both languages, with the same holes, and each key that the code asks for."""

import re
import string
from pathlib import Path

import stellarbyte.report
from stellarbyte.curve_charts import PANELS
from stellarbyte.report import flops, memory, parameters
from stellarbyte.report.charts import radar, step, weights
from stellarbyte.report.charts.memory import TRAINING_PARTS
from stellarbyte.report.matrix_facts import DEFINITIONS, DISTANCE_OF_DISTRIBUTION, DISTANCE_OF_WEIGHTS
from stellarbyte.report.on_text import METHOD
from stellarbyte.report.parts import _GROUPS
from stellarbyte.report.words import TABLES, Words, chinese_sentences

REPORT = Path(stellarbyte.report.__file__).parent
ROOT = REPORT.parents[1]
PACKAGES = ("stellarbyte", "stellarbyte_jax", "stellarbyte_torch", "convert")
CHINESE = re.compile("[\u4e00-\u9fff]")


def holes(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


def test_both_languages_have_the_same_words() -> None:
    assert TABLES["en"].keys() == TABLES["zh"].keys()
    for key, text in TABLES["en"].items():
        assert holes(text) == holes(TABLES["zh"][key]), key
        assert not CHINESE.search(text), key
    for key, text in chinese_sentences.SENTENCES.items():
        assert set(holes(text)) <= set(holes(key)) and CHINESE.search(text), key


def test_every_key_of_the_code_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in REPORT.rglob("*.py"))
    asked = set(re.findall(r'(?:\bwords|view\.note|view\.words)\(\s*"([^"]+)"', code))
    assert len(asked) > 80
    asked |= {f"part.{part}" for part in (*parameters.PARTS, *_GROUPS)} | {f"work.{part}" for part in flops.PARTS}
    asked |= {f"memory.{part}" for part in TRAINING_PARTS} | {f"curve.{panel.name}" for panel in PANELS}
    asked |= {f"radar.{name}" for name, _ in radar._AXES} | {f"chart.step.{kind}" for kind in step.KINDS}
    asked |= {f"chart.weights.{figure}" for figure, _ in weights.FIGURES} | {
        f"kind.{n}" for n in ("run", "model", "config")
    }
    asked |= {
        f"{start}.{phase}"
        for start in ("chart.speed", "chart.flops", "axis", "legend")
        for phase in ("prefill", "decode")
    }
    assert not asked - TABLES["en"].keys()
    assert memory.DTYPES  # dtypes and remat policies are names, which no language translates


def test_sentences_are_translated_with_what_is_in_their_holes() -> None:
    words = Words("zh")
    text = "3 layers of 256, 4 heads (2 for keys and values), feed-forward 704, vocabulary 4096"
    assert words.sentence(text) == "3 层，隐藏维度 256，4 头（键值 2 头），前馈 704，词表 4096"
    assert words.sentence("activations are not foreseen, because {x} is {y}") == "未估计激活值，原因：{x} is {y}"
    assert words.sentence("a sentence of tomorrow") == "a sentence of tomorrow"
    assert Words("en").sentence(text) == text
    left = "prefill of batch 1 at 512, decode of batch 16 at 128 and 2 more"
    assert words.sentence(f"left out for want of memory: {left}") == (
        "因内存不足，已略去：预填充（批量 1，长度 512）、解码（批量 16，缓存 128）等，另有 2 项"
    )
    assert words.remark(text) == words.sentence(text) + "。"
    english = Words("en")
    assert english.remark("some are not known") == "Some are not known."
    assert english.remark("hf/x holds none") == "hf/x holds none." and english.remark("Done.") == "Done."
    assert words.of("part", "of tomorrow") == "of tomorrow"


def test_what_the_measured_parts_define_is_translated() -> None:
    """A sentence that is changed there has to be changed here."""
    definitions = (*DEFINITIONS.values(), DISTANCE_OF_WEIGHTS, DISTANCE_OF_DISTRIBUTION, METHOD)
    for sentence in definitions:
        translated = Words("zh").sentence(sentence)
        assert CHINESE.search(translated), sentence
        assert set(re.findall(r"[\d.]+ ?%|\d{4,}", sentence)) <= set(re.findall(r"[\d.]+ ?%|\d{4,}", translated))


def test_sentences_stand_in_the_code_as_they_stand_in_the_table() -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "words" not in path.parts)
    code = re.sub(r'"\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    for template in chinese_sentences.SENTENCES:
        pieces = re.split(r"\{\w+\}|; | \(|\)|, vocabulary |, feed-forward | experts|none$", template)
        assert all(piece in code for piece in pieces if len(piece) > 8), template
