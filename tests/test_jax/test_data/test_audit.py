"""The ledger of simulated runs: what the audit proves of them, and what it finds in damaged ones."""

import json
import random
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.data.audit import audit, audit_json, audit_text
from stellarbyte_jax.data.ledger import Ledger, facts
from stellarbyte_jax.data.mixture import Segment
from stellarbyte_jax.data.sample_order import SampleId, SampleOrder
from stellarbyte_jax.processes.joined import Processes

ROWS, BATCH = (130, 70), 8
FIRST, CHANGED = Segment(0, (0.7, 0.3)), Segment(240, (0.4, 0.6))


@cache
def sample(number: int) -> SampleId:
    return SampleOrder(ROWS, 5, [FIRST, CHANGED])[number]


class Member(Processes):
    """One of several processes."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count


def open_ledger(
    run: Path, after: int, told: dict, process: int = 0, processes: int = 1, *, rolled_back: bool = False
) -> Ledger:
    return Ledger(run, after, Member(process, processes), told, rolled_back=rolled_back)


def applied(ledger: Ledger, step: int) -> None:
    ledger.after(lambda *_: None)(step, {})


def told_of(segments: Sequence[Segment]) -> dict:
    return facts(["words", "numbers"], SampleOrder(ROWS, 5, segments), "data")


def work(run: Path, start: int, stop: int, processes: int = 1, segments: Sequence[Segment] = (FIRST, CHANGED)) -> None:
    """One start of a run: steps `start` + 1 to `stop`, the batch dealt out to processes."""
    told = told_of(segments)
    for process in range(processes):
        with open_ledger(run, start, told, process, processes) as ledger:
            for step in range(start + 1, stop + 1):
                mine = range((step - 1) * BATCH + process, step * BATCH, processes)
                ledger.read(step, {number: sample(number) for number in mine})
                applied(ledger, step)
            ledger.sync()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 75 steps with five resumes on 1, 2 and 4 processes; steps are lost and done again at some of them."""
    work(tmp_path, 0, 12, 1, [FIRST])
    work(tmp_path, 10, 25, 4, [FIRST])
    work(tmp_path, 20, 30, 2, [FIRST])
    work(tmp_path, 30, 33, 4)
    work(tmp_path, 30, 60, 1)
    work(tmp_path, 55, 75, 2)
    return tmp_path


def lines(run: Path, process: int = 0) -> list[str]:
    return (run / "ledger" / f"process-{process:05d}.jsonl").read_text().splitlines(keepends=True)


def put(run: Path, changed: Sequence[str], process: int = 0) -> None:
    (run / "ledger" / f"process-{process:05d}.jsonl").write_text("".join(changed))


def signed(record: dict) -> str:
    record = {name: value for name, value in record.items() if name != "crc32"}
    text = json.dumps(record, separators=(",", ":"))[:-1]
    return f'{text},"crc32":{zlib.crc32(text.encode())}}}\n'


def test_a_run_with_resumes_host_counts_and_a_changed_mixture_is_clean(run: Path) -> None:
    found = audit(run, 75)
    assert found.faults == [] and found.fault_count == 0
    assert (found.first_step, found.last_step, found.samples) == (1, 75, 600)
    assert sorted(found.process_counts) == [1, 2, 4]
    counts = SampleOrder(ROWS, 5, [FIRST, CHANGED]).mixture.counts(600)  # type: ignore[union-attr]
    assert tuple(source.samples for source in found.sources) == counts
    assert [source.whole_epochs for source in found.sources] == [c // r for c, r in zip(counts, ROWS, strict=True)]
    assert [told["from_sample"] for told in found.shares] == [0, 0, 240, 240]
    assert "no repeat and no gap" in audit_text(found) and audit_json(found)["clean"]


def test_steps_after_the_newest_checkpoint_do_not_count(run: Path) -> None:
    put(run, lines(run, 1)[:-3], 1)  # killed: the other process was ahead
    assert audit(run, 75).fault_count
    found = audit(run, 72)
    assert found.fault_count == 0 and found.uncounted_steps == 3
    assert "3 steps after the newest checkpoint do not count" in audit_text(found)


def batch(number: int) -> dict[int, SampleId]:
    return {sample_: sample(sample_) for sample_ in range(number * BATCH, (number + 1) * BATCH)}


def test_a_skipped_step_uses_its_samples_up(tmp_path: Path) -> None:
    """The batch after the bad one was read as well, and comes again."""
    with open_ledger(tmp_path, 0, told_of([FIRST])) as ledger:
        for number, step in ((0, 1), (1, 2)):
            ledger.read(step, batch(number))
            applied(ledger, step)
        ledger.read(3, batch(2))
        ledger.read(4, batch(3))
        ledger.skip(3)
        for number, step in ((3, 3), (4, 4)):
            ledger.read(step, batch(number))
            applied(ledger, step)
    found = audit(tmp_path, 4)
    assert found.faults == [] and sum(source.skipped for source in found.sources) == BATCH
    assert "of them skipped" in audit_text(found)


@pytest.mark.parametrize("resumed_after", [None, 3, 5])
def test_a_rollback_skips_what_it_passes_over(tmp_path: Path, resumed_after: int | None) -> None:
    """Steps 3 to 5 are undone, and 5 was bad; then the run goes on from step 2, and may be killed and resumed."""
    with open_ledger(tmp_path, 0, told_of([FIRST])) as ledger:
        for step in range(1, 5):
            ledger.read(step, batch(step - 1))
            applied(ledger, step)
        ledger.read(5, batch(4))
        ledger.read(6, batch(5))
        ledger.roll_back(2, 5)
    with open_ledger(tmp_path, 2, told_of([FIRST]), rolled_back=True) as ledger:
        for step in range(3, 7):
            ledger.read(step, batch(step + 2))
            applied(ledger, step)
    if resumed_after is not None:
        with open_ledger(tmp_path, resumed_after, told_of([FIRST])) as ledger:
            for step in range(resumed_after + 1, 7):
                ledger.read(step, batch(step + 2))
                applied(ledger, step)
    found = audit(tmp_path, 6)
    assert found.faults == [] and sum(source.skipped for source in found.sources) == 3 * BATCH
    assert found.samples == 9 * BATCH


def test_an_amended_run_begins_its_new_data_anew(tmp_path: Path) -> None:
    """On two processes: samples are counted from 0 again, and both parts are proved."""
    counts = {0: 5, 2: 9}  # the part of a run -> its last step
    orders = {0: SampleOrder([50], 1), 2: SampleOrder([20], 1)}
    for process in range(2):
        done = 0
        for part, last in counts.items():
            told = facts(["one"], orders[part], f"data {part}", part)
            with open_ledger(tmp_path, done, told, process, 2) as ledger:
                for step in range(done + 1, last + 1):
                    first = (step - 1 - done) * BATCH
                    ledger.read(step, {n: orders[part][n] for n in range(first + process, first + BATCH, 2)})
                    applied(ledger, step)
            done = last
    found = audit(tmp_path, 9)
    assert found.faults == [] and found.samples == 9 * BATCH
    assert [(source.samples, source.whole_epochs) for source in found.sources] == [(40, 0), (32, 1)]
    put(tmp_path, [line for line in lines(tmp_path) if '"step":7,' not in line])
    assert any("step 7: sample 8 is missing" in fault for fault in audit(tmp_path, 9).faults)


def change(line: str, **fields: object) -> str:
    return signed(json.loads(line) | fields)


def _repeat(run: Path) -> None:
    whole = lines(run)
    record, earlier = json.loads(whole[4]), json.loads(whole[2])
    ids = [(source, count) for source, count in earlier["source"]]
    put(run, [*whole[:4], change(whole[4], source=ids, row=earlier["row"]), *whole[5:]])
    assert len(record["row"]) == len(earlier["row"])


def _missing_row(run: Path) -> None:
    whole = lines(run)
    record = json.loads(whole[5])
    first = record["numbers"][0][0]
    short = {"numbers": [[first + 1, first + BATCH]], "row": record["row"][1:], "epoch": [[0, BATCH - 1]]}
    sources = [source for source, count in record["source"] for _ in range(count)][1:]
    put(run, [*whole[:5], change(whole[5], source=[[s, 1] for s in sources], **short), *whole[6:]])


FAULTS = {
    "a step is gone": (lambda run: put(run, [*lines(run)[:3], *lines(run)[4:]]), r"no ledger has step 3"),
    "the end is gone": (lambda run: [put(run, lines(run, p)[:-2], p) for p in (0, 1)], r"no ledger has steps 74 to 75"),
    "a process is gone": (
        lambda run: (run / "ledger" / "process-00003.jsonl").unlink(),
        r"step 11: sample 83 is missing",
    ),
    "a row comes again": (_repeat, r"step 4: row \d+ of words comes again in epoch 1"),
    "a row is gone": (_missing_row, r"step 5: sample 32 is missing"),
    "a flipped digit": (
        lambda run: put(run, [line.replace('"row":[', '"row":[1', 1) for line in lines(run)]),
        r"process-00000.jsonl:2 is damaged \(its CRC-32 is not that of its content\)",
    ),
    "a cut line": (
        lambda run: put(run, [*lines(run)[:-1], lines(run)[-1][:40]]),
        r"process-00000.jsonl:\d+ is damaged \(it is cut off\)",
    ),
    "no start": (lambda run: put(run, lines(run)[1:]), r":1 is damaged \(no start of a run stands before it\)"),
    "no such source": (
        lambda run: put(run, [lines(run)[0], change(lines(run)[1], source=[[7, BATCH]]), *lines(run)[2:]]),
        r":2 is damaged \(its samples are of no source\)",
    ),
    "other shapes": (
        lambda run: put(run, [lines(run)[0], change(lines(run)[1], numbers="x"), *lines(run)[2:]]),
        r":2 is damaged",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(run: Path, name: str) -> None:
    break_, expected = FAULTS[name]
    break_(run)
    found = audit(run, 75)
    assert found.fault_count > 0
    assert any(re.search(expected, fault) for fault in found.faults), found.faults
    assert "faults" in audit_text(found) and not audit_json(found)["clean"]


def test_a_mixture_that_is_not_the_weights_is_found(tmp_path: Path) -> None:
    work(tmp_path, 0, 30, 1, [Segment(0, (0.5, 0.5))])
    assert any("its weight asks for 120" in fault for fault in audit(tmp_path, 30).faults)


def test_an_epoch_that_ends_early_is_found(tmp_path: Path) -> None:
    rows = random.Random(0).sample(range(20), 18)
    ids = [SampleId(0, 0, row) for row in rows] + [SampleId(0, 1, row) for row in rows]
    with open_ledger(tmp_path, 0, facts(["one"], SampleOrder([20], 0), "data")) as ledger:
        for step in range(1, 5):
            ledger.read(step, {n: ids[n] for n in range((step - 1) * 9, step * 9)})
            applied(ledger, step)
    (fault,) = audit(tmp_path, 4).faults
    assert "step 3: epoch 1 of one ended without 2 of its 20 rows" in fault


def test_a_million_samples_take_a_dozen_megabytes(tmp_path: Path) -> None:
    """As docs/data.md says: the bytes of one sample, of sources of some 10 million rows."""
    order = SampleOrder([10**7], 0)
    with open_ledger(tmp_path, 0, facts(["one"], order, "data")) as ledger:
        ledger.read(1, {number: order[number] for number in range(1000)})
        applied(ledger, 1)
    assert len(lines(tmp_path)[1]) < 9000


def test_no_ledger_and_no_run_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"has no ledger: a run writes one with data.ledger true"):
        audit(tmp_path, 3)
    assert main(["data", "audit", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    assert main(["data", "audit", str(tmp_path)]) == 2
    assert "has no ledger" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "75").mkdir()


def test_the_command_says_whether_it_is_clean(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "75").mkdir(parents=True)
    assert main(["data", "audit", str(run)]) == 0
    assert "no repeat and no gap" in capsys.readouterr().out
    put(run, lines(run)[:-2])
    assert main(["data", "audit", str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fault_count"] > 0
