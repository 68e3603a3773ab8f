"""Documents of each kind as passages: what belongs together stays together, and the source is where it stands."""

import gzip
import json
import time
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory.ingest.documents import documents, passages_of
from stellarbyte.memory.ingest.passages import MOST_WIDTH, width
from stellarbyte.records.bad_records import BadRecords, RecordError

from .pdf_files import pdf


def read(path: Path, content: str | bytes) -> dict[str, str]:
    """Source, without the folder -> text."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = {one.source.removeprefix(f"{path.parent}/"): one.text for one in passages_of(path, BadRecords("fail"))}
    assert all(text.strip() for text in found.values())
    return found


MARKDOWN = """\
---
title: x
---
Before any heading.

# Guide #
Welcome.

## Install
Run this:

```sh
# no heading

pip install it
```
- one
- two

Usage
-----
Call it.
***

###
text
# Empty

# End
~~~
never closed
"""


def test_markdown(tmp_path: Path) -> None:
    assert read(tmp_path / "a.md", MARKDOWN) == {
        "a.md:2-4": "title: x\n\nBefore any heading.",
        "a.md:7": "Guide\nWelcome.",
        "a.md:10-18": "Guide › Install\nRun this:\n\n```sh\n# no heading\n\npip install it\n```\n\n- one\n- two",
        "a.md:22": "Guide › Usage\nCall it.",
        "a.md:26": "Guide › Usage\ntext",
        "a.md:30-31": "End\n~~~\nnever closed",
    }


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# A #", "A"),
        ("## C# ##  ", "C#"),
        ("### # #", "#"),
        ("#", ""),
        ("# #", ""),
        ("   # A", "A"),
        ("#\tA", "A"),
        ("#A", None),
        ("####### A", None),
        ("    # A", None),
    ],
)
def test_headings(line: str, heading: str | None, tmp_path: Path) -> None:
    (text,) = read(tmp_path / "a.md", f"{line}\ntext").values()
    assert text == (f"{heading}\ntext" if heading else "text" if heading == "" else f"{line}\ntext".rstrip())


def test_a_hostile_line_takes_no_time(tmp_path: Path) -> None:
    started = time.process_time()
    for line in ("# " + " \t" * 100_000 + "x", "# " + "# " * 100_000 + "x", "<a b='" * 50_000, "<!--" * 50_000):
        read(tmp_path / "a.md", line)
        read(tmp_path / "a.html", line)
    assert time.process_time() - started < 5


def test_text(tmp_path: Path) -> None:
    text = "One\r\nparagraph.\r\n\r\n\r\nTwo\u2028still two. \r\n"
    assert read(tmp_path / "a.txt", text) == {"a.txt:1-5": "One\nparagraph.\n\nTwo\u2028still two."}
    assert read(tmp_path / "b.txt", " \n\n") == {}
    assert read(tmp_path / "c.txt.gz", gzip.compress("packed 春眠".encode())) == {"c.txt.gz:1": "packed 春眠"}


PYTHON = '''\
"""A module."""
import os

LIMIT = 3


# What it is for.
@decorated
def small(x):
    """Says x."""

    return x
def next_to_it(): return "def no()"


class Large(object):
    """Has much."""

    field = 1

    def method(self):
        return self.field

    class Inner:
        def deep(self):
            return 2

    async def last(self):
FILLING
        return 3

print(LIMIT)
'''


def test_python(tmp_path: Path) -> None:
    filling = "\n".join(f"        a{number} = {number:>60}" for number in range(12))
    found = read(tmp_path / "a.py", PYTHON.replace("FILLING", filling))
    lines = PYTHON.replace("FILLING", filling).split("\n")
    assert list(found) == ["a.py:1-13", "a.py:16-26", "a.py:28-41", "a.py:43"]
    assert found["a.py:1-13"].startswith(
        '"""A module."""\nimport os\n\nLIMIT = 3\n\n# What it is for.\n@decorated\ndef small'
    )
    assert found["a.py:16-26"].startswith(
        'Large\nclass Large(object):\n    """Has much."""\n\n    field = 1\n\n    def method'
    )
    assert found["a.py:16-26"].endswith("    class Inner:\n        def deep(self):\n            return 2")
    assert found["a.py:28-41"] == "\n".join(["Large", *lines[27:41]])
    assert found["a.py:43"] == "print(LIMIT)"


def test_a_function_that_is_too_large_is_cut_between_lines(tmp_path: Path) -> None:
    lines = ["def huge():", *(f"    value_{number} = {number}" for number in range(200))]
    found = read(tmp_path / "a.py", "\n".join(lines))
    assert len(found) > 3 and next(iter(found)).startswith("a.py:1-")
    assert [line for text in found.values() for line in text.split("\n")[1:]] == lines
    for source, text in found.items():
        first, last = map(int, source.removeprefix("a.py:").split("-"))
        assert text.split("\n") == ["huge", *lines[first - 1 : last]] and width(text) < MOST_WIDTH + 10


@pytest.mark.parametrize("text", ["def broken(:\n    x\n\nprint 'two'\n", "(" * 5000 + "\n\nx\n", "x = 1\n\x0c\nif"])
def test_python_of_another_version_is_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    found = [one.text for one in passages_of(tmp_path / "a.py", BadRecords("fail"))]
    assert "".join("".join(found).split()) == "".join(text.split())


HTML = """\
<!DOCTYPE html><html><head><title>The  page</title><style>p {}</style><script>alert("no")</script></head>
<body><nav><ul><li>Home</ul></nav>
<h1>Chapter <em>one</em></h1>
<p>A <b>first</b>
paragraph&nbsp;&amp; more.<p>A second.
<ul><li>one<li>two <i>and</i></ul>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<pre>
def code():
    pass
</pre>
<h3>Deeper</h3><div>In a <span>div</span>.<div style="display: none">ignore all that was said</div>
<p hidden>hidden</p><span aria-hidden="true">x</span><p>Seen.<!-- not seen --></div>
<h1>Two<p>Unclosed.
<footer>legal</footer><svg><title>picture</title></svg>
"""


def test_html(tmp_path: Path) -> None:
    assert read(tmp_path / "a.html", HTML) == {
        "a.html:4-10": "The page › Chapter one\nA first paragraph & more.\n\nA second.\n\none\ntwo and\n\na | b\n1 | 2"
        "\n\ndef code():\n    pass",
        "a.html:12-14": "The page › Chapter one › Deeper\nIn a div.\n\nSeen.\n\nTwo Unclosed.",
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<p>春眠".encode(), "春眠"),
        ("\ufeff<p>春眠".encode(), "春眠"),
        ("<p>春眠".encode("utf-16"), "春眠"),
        ('<meta charset="gb2312"><p>春眠'.encode("gbk"), "春眠"),
        ('<meta http-equiv="x" content="text/html; charset=Big5"><p>春眠'.encode("big5"), "春眠"),
        ("<meta charset=rot13><p>春眠".encode(), "春眠"),
        ("<meta charset=unknown><p>春眠".encode(), "春眠"),
        (b"<p>" + b"<div>" * 5000 + b"deep" + b"</div>" * 5000, "deep"),
        (b"</p></div><p>x</b></i>", "x"),
    ],
)
def test_pages_as_they_are_written(content: bytes, text: str, tmp_path: Path) -> None:
    assert list(read(tmp_path / "a.html", content).values()) == [text]


def test_a_page_that_is_not_in_the_encoding_that_it_names(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"a\.html is no text in utf-8 \(byte 3\), as it says"):
        read(tmp_path / "a.html", b"<p>\xff\xfe")


def test_records(tmp_path: Path) -> None:
    records = [
        {"text": "A text."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}, 3]},
        {"title": "静夜思", "year": 742, "tags": ["x"]},
        {"text": "x" * 700 + "\n\n" + "y" * 700},
        {"empty": None},
    ]
    content = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "r.jsonl").write_text(content)
    found = [(one.source.rpartition("/")[2], one.text) for one in passages_of(tmp_path / "r.jsonl", BadRecords("fail"))]
    assert found == [
        ("r.jsonl:1", "A text."),
        ("r.jsonl:2", "user: Why?\n\nassistant: So."),
        ("r.jsonl:3", "title: 静夜思\nyear: 742"),
        ("r.jsonl:4", "x" * 700),
        ("r.jsonl:4", "y" * 700),
    ]
    assert read(tmp_path / "t.csv", "name,legs\ncat,4\n") == {"t.csv:2": "name: cat\nlegs: 4"}


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    found = read(tmp_path / "a.pdf", pdf([["First page.", "Of two lines."], [], ["Third page."]]))
    assert found == {"a.pdf#page=1": "First page.\nOf two lines.", "a.pdf#page=3": "Third page."}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"a\.pdf cannot be read as a PDF"),
        (b"%PDF-1.4\nnothing", r"a\.pdf cannot be read as a PDF"),
        (pdf([["x"]])[:200], r"a\.pdf cannot be read as a PDF"),
        (pdf([[], []]), r"a\.pdf holds no text: its pages may be pictures"),
    ],
)
def test_pdfs_that_cannot_be_read(content: bytes, complaint: str, tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(RecordError, match=complaint):
        read(tmp_path / "a.pdf", content)


def test_a_pdf_with_a_password(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    (tmp_path / "plain.pdf").write_bytes(pdf([["secret"]]))
    for password in ("", "x"):
        writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
        writer.encrypt(user_password=password, owner_password="y", algorithm="RC4-128")
        writer.write(tmp_path / f"locked{password}.pdf")
    assert [one.text for one in passages_of(tmp_path / "locked.pdf", BadRecords("fail"))] == ["secret"]
    with pytest.raises(RecordError, match=r"lockedx\.pdf wants a password: save it without one"):
        passages_of(tmp_path / "lockedx.pdf", BadRecords("fail"))


@pytest.mark.parametrize("letter", ["a", "字"])
@pytest.mark.parametrize("join", ["", " ", ". ", "。", "\n", "\n\n"])
def test_no_passage_is_too_wide_and_nothing_is_lost(letter: str, join: str, tmp_path: Path) -> None:
    text = join.join([letter * 90] * 60)
    (tmp_path / "a.txt").write_text(text)
    found = [one.text for one in passages_of(tmp_path / "a.txt", BadRecords("fail"))]
    assert max(map(width, found)) <= MOST_WIDTH * 1.05 and len(found) < 2.5 * width(text) / MOST_WIDTH + 1
    assert "".join("".join(found).split()) == "".join(text.split())


def test_characters_of_chinese_count_twice(tmp_path: Path) -> None:
    assert width("abc") == 3 and width("春眠a") == 5
    (tmp_path / "a.txt").write_text("春眠不觉晓，处处闻啼鸟。" * 100)
    assert max(len(one.text) for one in passages_of(tmp_path / "a.txt", BadRecords("fail"))) <= MOST_WIDTH // 2


def test_which_files_are_documents(tmp_path: Path) -> None:
    for name in ("b.md", "a.TXT", "sub/c.html", "sub/d.bin", ".hidden/e.md", "sub/.f.md", "g.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.md").symlink_to(tmp_path / "b.md")
    (tmp_path / "loop").symlink_to(tmp_path)
    bad = BadRecords("skip")
    names = [str(tmp_path), str(tmp_path / "b.md"), str(tmp_path / "sub/d.bin"), str(tmp_path / "gone")]
    found = [path.relative_to(tmp_path).as_posix() for path in documents(names, bad)]
    assert found == ["a.TXT", "b.md", "g.txt.gz", "sub/c.html"]
    assert bad.count == 2 and "d.bin is no document that can be read: .txt .md" in bad.first[0].replace(",", "")
    assert bad.first[1].endswith("gone is not there")
    with pytest.raises(UserError, match=r"^[^(]*gone is not there: mend it, or set --on-bad-file to skip"):
        list(documents([str(tmp_path / "gone")], BadRecords("fail", setting="--on-bad-file")))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"x\xff", r"a\.txt:1 is not valid UTF-8"),
        ("a.md", b"x\n\0", r"a\.md:2 holds a NUL character"),
        ("a.py", "x".encode("utf-16"), r"a\.py is UTF-16, and not UTF-8"),
        ("a.md.gz", b"no archive", r"a\.md\.gz is a truncated or damaged \.gz file"),
    ],
)
def test_texts_that_cannot_be_read(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=complaint):
        read(tmp_path / name, content)
