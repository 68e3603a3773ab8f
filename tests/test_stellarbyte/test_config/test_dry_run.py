import json
import os

from stellarbyte.config.dry_run import DryRun, source_facts
from stellarbyte.config.nodes import parse_yaml
from stellarbyte.config.plain import plain


def test_the_text_is_the_config_as_yaml_and_then_the_report():
    config = {"output_dir": "on", "data": {"sources": [{"path": "x"}]}}
    report = {
        "data": {
            "warnings": ["a sentence that is much longer than a line of one hundred columns " * 2],
            "sources": [{"path": "x.jsonl", "files": 1, "bytes": 1234567}, {"path": "y", "files": 2, "state": "here"}],
        },
        "shapes": {"parameters": 3_262_208, "of_these": {"norms": 3, "head": 4}, "fits": True, "epochs": 0.123456},
        "run": {"checkpoints": []},
    }
    text = DryRun(config, report).text()
    yaml, _, rest = text.partition("\n\n")
    assert plain(parse_yaml(yaml, "f")) == config
    assert rest.splitlines() == [
        "data",
        "  sources   x.jsonl: 1 file, 1,234,567 bytes",
        "            y: 2 files, state here",
        "  warnings  a sentence that is much longer than a line of one hundred columns a sentence that is",
        "              much longer than a line of one hundred columns",
        "",
        "shapes",
        "  parameters  3,262,208",
        "  of these    norms 3, head 4",
        "  fits        yes",
        "  epochs      0.123",
        "",
        "run",
        "  checkpoints  none",
    ]
    assert json.loads(json.dumps(DryRun(config, report).to_dict())) == {"config": config, "report": report}


def test_what_a_report_says_cannot_command_the_terminal():
    assert "\x1b" not in DryRun({}, {"data": {"folder": "a\x1b[31m"}}).text()


def test_sources_are_told_by_names_and_sizes(tmp_path):
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "b.txt").write_text("123")
    (tmp_path / "c.bin").write_text("1")
    facts = source_facts([(str(tmp_path / "a.txt"), None), (str(tmp_path), None), (str(tmp_path / "no.txt"), None)])
    assert facts["sources"] == [
        {"path": str(tmp_path / "a.txt"), "files": 1, "bytes": 5},
        {"path": str(tmp_path), "files": 1, "bytes": 3, "named_before": 1, "left_out": "1 .bin (c.bin)"},
        {"path": str(tmp_path / "no.txt"), "files": 0, "bytes": 0},
    ]
    (warning,) = facts["warnings"]
    assert warning.startswith(f"data.sources: {tmp_path}/no.txt does not exist: check the path")


def test_a_file_that_is_read_in_two_manners_counts_twice(tmp_path):
    (tmp_path / "a.txt").write_text("12345")
    os.link(tmp_path / "a.txt", tmp_path / "link.txt")
    found = source_facts([(str(tmp_path / "a.txt"), "text"), (str(tmp_path / "link.txt"), "auto")])
    assert [source["files"] for source in found["sources"]] == [1, 1]
    assert "warnings" not in found
