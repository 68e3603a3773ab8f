"""What may change when a run goes on, what --amend changes, and what nothing does; without a step of training."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.amendments import Amendment, append_amendment, read_amendments
from stellarbyte_jax.checkpoints.checkpoint import GuardState, RunMetadata, load_metadata
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import load_run_config, to_dict
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.mixture import Segment
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.training.amending import Resumed, rate_told, remixed, resume
from stellarbyte_jax.training.same_run import GoingOn, check_same_run
from test_jax.shards import manifest_of


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunConfig:
    """The config of a copy of the finished run, which a test may amend."""
    shutil.copytree(finished_run, tmp_path / "run")
    return dataclasses.replace(load_run_config(finished_run / "config.yaml"), output_dir=str(tmp_path / "run"))


@pytest.fixture
def other_data(small_data: DataConfig, corpus: Path, tmp_path: Path) -> DataConfig:
    """Prepared from another text with the same tokenizer."""
    (tmp_path / "other.jsonl").write_text("".join(corpus.open(encoding="utf-8").readlines()[1:]), encoding="utf-8")
    sources = (SourceConfig(str(tmp_path / "other.jsonl")),)
    data = dataclasses.replace(small_data, sources=sources, shards=str(tmp_path / "other"))
    prepare(data, report=lambda _: None)
    return data


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """With other fields in these sections."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


def checked(config: RunConfig, *, amend: bool = False) -> GoingOn:
    data = DataIdentity.of(manifest_of(config.data))
    return check_same_run(config, Tokenizer.load(config.data.tokenizer), data, amend=amend)


def amended(config: RunConfig) -> Resumed:
    """Amends the run, as the trainer does when it goes on after its newest checkpoint."""
    metadata, step = load_metadata(config.output_dir)
    data, going_on = DataIdentity.of(manifest_of(config.data)), checked(config, amend=True)
    return resume(config, data, metadata, step, going_on, amend=True, writes=True)


AMENDABLE = {
    "training": {"max_steps": 20, "batch_size": 8, "gradient_accumulation_steps": 2, "dtype": "bfloat16"},
    "optimizer": {"learning_rate": 0.02, "lr_scheduler_type": "linear", "weight_decay": 0.0, "adam_beta2": 0.99},
    "model": {"hidden_dropout": 0.1, "rope_theta": 500.0},
}


def test_what_may_change_is_refused_naming_the_flag_and_recorded_with_it(run: RunConfig) -> None:
    config = changed(run, **AMENDABLE)
    with pytest.raises(UserError) as refused:
        checked(config)
    assert "training.max_steps (was 12, now 20)" in str(refused.value)
    assert "or let them change after step 12 with --amend, which records it" in str(refused.value)
    assert "cannot change" not in str(refused.value)
    told = amended(config).remarks
    (amendment,) = read_amendments(run.output_dir)
    assert amendment.changes == {
        f"{section}.{name}": (getattr(getattr(run, section), name), value)
        for section, fields in AMENDABLE.items()
        for name, value in fields.items()
    }
    assert (amendment.number, amendment.step, amendment.rows, amendment.data) == (1, 12, 48, None)
    assert told[0].startswith("amended after step 12 on 2") and told[0].endswith("(recorded in "
        f"{run.output_dir}/amendments.jsonl)")  # fmt: skip
    assert len(told) == 2
    assert checked(config) == GoingOn((amendment,), before=config), "the same config goes on without the flag"


def test_of_a_run_that_goes_on_unchanged_nothing_is_recorded(run: RunConfig) -> None:
    free = changed(run, checkpoint={"save_steps": 3}, mesh={"data": 2}, training={"eval_steps": 4})
    assert amended(free) == Resumed(48, GuardState(), 0, ["--amend: nothing has changed, so nothing is recorded"])
    assert checked(free).changes == ()
    assert not (Path(run.output_dir) / "amendments.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"model": {"hidden_size": 32}}, "model.hidden_size", "the weights were made for it"),
        ({"seed": 1}, "seed", "the order of the samples and all that is drawn follow from it"),
        ({"optimizer": {"optim": "lion"}}, "optimizer.optim", "each optimizer has a state of its own"),
        ({"training": {"ema_decay": 0.9}}, "training.ema_decay", "the average is kept from the first step on or not"),
        ({"optimizer": {"learning_rate_pattern": {"mlp": 2.0}}}, "optimizer.learning_rate_pattern.mlp",
         "the optimizer's state is another with such factors than without any"),
        ({"init_from": "elsewhere"}, "init_from", "the run began with these weights"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("amend", [False, True])
def test_what_cannot_change_is_refused_with_its_reason(
    change: dict[str, Any], field: str, reason: str, amend: bool, run: RunConfig
) -> None:
    plain = {name: value for name, value in change.items() if not isinstance(value, dict)}
    sections = {name: value for name, value in change.items() if isinstance(value, dict)}
    longer = changed(run, training={"max_steps": 14})
    config = dataclasses.replace(changed(longer, **sections), **plain)
    with pytest.raises(UserError) as refused:
        checked(config, amend=amend)
    message = str(refused.value)
    assert f"{field} cannot change, because {reason}" in message
    assert f"choose another output_dir, and init_from {run.output_dir} to train on" in message
    assert message.endswith("What --amend can change is training.max_steps")


def test_fewer_steps_than_are_done_are_refused(run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"training\.max_steps 11 is less than the 12 steps that .* has done: set 12"):
        checked(changed(run, training={"max_steps": 11}), amend=True)
    assert checked(changed(run, training={"max_steps": 12, "batch_size": 2}), amend=True).changes


def test_the_config_from_before_is_refused_by_the_amendments_name(run: RunConfig) -> None:
    config = changed(run, training={"max_steps": 20})
    amended(config)
    with pytest.raises(UserError) as refused:
        checked(run)
    assert "it was amended after step 12 on 2" in str(refused.value)
    assert "training.max_steps 12 -> 20, and this config is from before; go on with " in str(refused.value)
    assert [change[0] for change in checked(run, amend=True).changes] == ["training.max_steps"], "it may be taken back"
    further = changed(config, training={"batch_size": 8})
    amended(further)
    assert [each.number for each in read_amendments(run.output_dir)] == [1, 2]
    assert checked(further).before == further
    with pytest.raises(UserError, match=r"training\.batch_size 4 -> 8, and this config is from before"):
        checked(config)


def test_an_amendment_that_a_checkpoint_has_is_not_applied_again(run: RunConfig) -> None:
    """The checkpoint's own config counts, though the file's last line says something else."""
    amended(changed(run, training={"max_steps": 20}))
    metadata, _ = load_metadata(run.output_dir)
    later = dataclasses.replace(metadata, data_position={"step": 12, "rows": 48, "amendments": 1})
    going_on = GoingOn(read_amendments(run.output_dir))
    data = DataIdentity.of(manifest_of(run.data))
    assert resume(run, data, later, 12, going_on, amend=False, writes=True).amendments == 1
    (Path(run.output_dir) / "amendments.jsonl").unlink()
    assert resume(run, data, later, 12, GoingOn(), amend=False, writes=True).amendments == 1
    assert resume(run, data, None, 0, GoingOn(), amend=False, writes=True) == Resumed(0, GuardState(), 0, [])
    assert resume(run, data, None, 0, going_on, amend=False, writes=True) == Resumed(0, GuardState(), 1, []), (
        "of a run that is gone"
    )


def test_other_data_goes_on_from_its_own_first_row(run: RunConfig, other_data: DataConfig) -> None:
    config = dataclasses.replace(run, data=other_data)
    with pytest.raises(
        UserError, match=r"holds a run on other data .* has now \(.*go on with these from their first r"
    ):
        checked(config)
    rows, _, number, told, *_ = amended(config)
    (amendment,) = read_amendments(run.output_dir)
    assert (rows, number) == (0, 1)
    assert [*amendment.changes] == ["data.sources.0.path", "data.shards"] and amendment.rows == 48
    assert told[-1] == "data: 48 rows of the old were taken; the new begin with their first epoch"
    assert checked(config).changes == ()
    metadata, step = load_metadata(run.output_dir)
    data = DataIdentity.of(manifest_of(config.data))
    again = resume(config, data, metadata, step, checked(config), amend=False, writes=True)
    assert again == Resumed(0, GuardState(), 1, [], part=1), "also if it is started again before it has saved"
    skipped = dataclasses.replace(metadata, guard=GuardState(rows_left_out=4, skipped_in_a_row=1))
    again = resume(config, data, skipped, step, checked(config), amend=False, writes=True)
    assert again.guard == GuardState(skipped_in_a_row=1), "the rows that were left out are not of this data"
    later = dataclasses.replace(metadata, data_position={"step": 14, "rows": 8, "amendments": 1})
    assert resume(config, data, later, 14, checked(config), amend=False, writes=True).rows == 8, "but not after it has"
    with pytest.raises(UserError, match="holds a run on other data"):
        checked(run)


def test_rows_of_another_length_begin_anew(run: RunConfig) -> None:
    going_on = checked(changed(run, data={"sequence_length": 12}), amend=True)
    assert going_on.restarts_data and [change[0] for change in going_on.changes] == ["data.sequence_length"]


def amendment_of(rows: int, data: dict | None = None) -> Amendment:
    return Amendment(1, 4, "2026-11-30", {}, rows, {}, {}, data)


def test_other_weights_hold_from_the_row_of_their_amendment_on() -> None:
    first, second, third = (0.5, 0.5), (0.9, 0.1), (0.2, 0.8)
    segments = remixed((Segment(0, first),), amendment_of(48), second)
    assert segments == (Segment(0, first), Segment(48, second))
    assert remixed(segments, amendment_of(64), second) == segments, "another field has changed"
    assert remixed(segments, amendment_of(48), third) == (Segment(0, first), Segment(48, third)), "no step was between"
    assert remixed(segments, amendment_of(48), first) == (Segment(0, first),), "taken back at once"
    assert remixed(segments, amendment_of(64), first) == (*segments, Segment(64, first))
    assert remixed(segments, amendment_of(40), third) == (Segment(0, first), Segment(40, third)), "an older checkpoint"
    assert remixed(segments, amendment_of(64, {"kind": "text"}), third) == (Segment(0, third),), "other data"
    assert remixed((), amendment_of(64, {"kind": "text"}), third) == (Segment(0, third),), "weights have come"
    assert remixed(segments, amendment_of(64, {"kind": "text"}), None) == ()


def test_a_checkpoint_knows_the_weights_that_have_changed(run: RunConfig) -> None:
    """With those of an amendment that it does not have yet."""
    data = DataIdentity.of(manifest_of(run.data))

    def weighted(weight: float) -> RunConfig:
        source = dataclasses.replace(run.data.sources[0], weight=weight)
        return dataclasses.replace(run, data=dataclasses.replace(run.data, sources=(source,)))

    metadata, _ = load_metadata(run.output_dir)
    metadata = dataclasses.replace(metadata, config=to_dict(weighted(1.0)))
    assert resume(weighted(1.0), data, metadata, 12, GoingOn(), amend=False, writes=False).segments == (
        Segment(0, (1.0,)),
    )
    amendment = Amendment(1, 12, "2026-11-30", {}, 48, {}, to_dict(weighted(3.0)))
    pending = resume(weighted(3.0), data, metadata, 12, GoingOn((amendment,)), amend=False, writes=False)
    assert pending.segments == (Segment(0, (1.0,)), Segment(48, (3.0,)))
    position = pending.position(14, 56)
    assert position == {"step": 14, "rows": 56, "amendments": 1, "mixture": [[0, [1.0]], [48, [3.0]]]}
    later = dataclasses.replace(metadata, config=to_dict(weighted(3.0)), data_position=position)
    again = resume(weighted(3.0), data, later, 14, GoingOn((amendment,)), amend=False, writes=False)
    assert again.segments == pending.segments
    with pytest.raises(UserError, match=r"sources have the weights \(3\.0,\), but its config gives them \(1\.0,\)"):
        resume(weighted(1.0), data, dataclasses.replace(metadata, data_position=position), 12, GoingOn(), amend=False,
               writes=False)  # fmt: skip


def test_weights_change_where_they_stand_and_begin_anew_where_they_come(run: RunConfig) -> None:
    source = dataclasses.replace(run.data.sources[0], weight=1.0)
    config = changed(run, data={"sources": (source,)})
    with pytest.raises(UserError, match=r"data\.sources\.0\.weight \(was None, now 1\.0\)"):
        checked(config)
    assert checked(config, amend=True).restarts_data
    amended(config)
    assert checked(config).changes == ()
    further = changed(run, data={"sources": (dataclasses.replace(source, weight=2.0),)})
    going_on = checked(further, amend=True)
    assert [name for name, *_ in going_on.changes] == ["data.sources.0.weight"] and not going_on.restarts_data


def test_a_run_of_an_earlier_version_has_taken_its_batches(run: RunConfig) -> None:
    metadata, _ = load_metadata(run.output_dir)
    earlier = dataclasses.replace(metadata, data_position={"step": 12})
    data = DataIdentity.of(manifest_of(run.data))
    assert resume(run, data, earlier, 12, GoingOn(), amend=False, writes=True).rows == 48
    imported = RunMetadata({"model": metadata.config["model"]}, metadata.tokenizer_files)
    assert resume(run, data, imported, 0, GoingOn(), amend=False, writes=True).rows == 0


def test_the_rate_from_here_on_is_told(run: RunConfig) -> None:
    config = changed(run, training={"max_steps": 20}, optimizer={"learning_rate": 0.02})
    assert rate_told(12, config, run) == (
        "rate: was 1.0e-03 at step 12, is 8.5e-03 from step 13 on, cosine to 2.0e-03 at step 20"
    )
    assert rate_told(12, run, run) == "rate: was 1.0e-03 at step 12; there are no steps after it"


def test_a_damaged_record_is_told(run: RunConfig) -> None:
    amended(changed(run, training={"max_steps": 20}))
    (amendment,) = read_amendments(run.output_dir)
    append_amendment(run.output_dir, dataclasses.replace(amendment, number=2, config={"training": 3}))
    with pytest.raises(UserError, match=r"config|training|output_dir"):
        checked(run)
