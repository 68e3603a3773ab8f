"""What compiling took, whence the program came, and which argument made it necessary again."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stellarbyte.errors import UserError
from stellarbyte_jax.training.watching.compile_watch import Compilation, CompileWatch
from stellarbyte_jax.training.watching.diagnostics import HLO_FILES, check_dump_folder


def jitted(number: float) -> Any:
    """A step that no cache has seen, for each number another."""

    def some_step(state: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        # What a function inside it would report: its time is in the step's already.
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 1e4, fun_name="inner")
        return {"w": state["w"] + jnp.tanh(batch["x"]).sum() * number}, batch["x"].sum()

    return jax.jit(some_step, donate_argnums=0)


def arrays(rows: int = 2, dtype: Any = jnp.float32) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    return {"w": jnp.zeros(3)}, {"x": jnp.ones((rows, 3), dtype)}


def test_each_compilation_is_reported_and_the_later_ones_are_explained() -> None:
    seen: list[Compilation] = []
    with CompileWatch(seen.append) as watch:
        step = watch.watch(jitted(0.1))
        state, batch = arrays()
        for _ in range(3):
            state, _ = step(state, batch)
        assert len(seen) == 1 and seen[0].again is None
        assert seen[0].step == "some step"
        assert all(0 < seconds < 1e4 for name, seconds in seen[0].figures().items() if name.endswith("_seconds"))
        jax.jit(lambda x: x * 0.123)(jnp.ones(3))
        assert len(seen) == 1, "what others compile is no business of ours"

        step(*arrays(rows=4))
        assert seen[1].again == "batch['x'] was float32[2,3] and is float32[4,3]"
        assert str(seen[1]).startswith("warning: some step ") and "again in" in str(seen[1])
        step(*arrays(dtype=jnp.bfloat16))
        assert seen[2].again == "batch['x'] was float32[2,3] and is bfloat16[2,3]"
        state, batch = arrays()
        step(state, {**batch, "y": batch["x"]})
        assert seen[3].again == "batch['y'] is new"
        spread = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
        step(state := {"w": jnp.zeros(3)}, {"x": jax.device_put(jnp.ones((2, 3)), spread)})
        assert "batch['x'] lay as" in str(seen[4].again) and "'data'" in str(seen[4].again)
    step(*arrays(rows=5))
    assert len(seen) == 5, "it listens no longer"


def test_where_the_program_came_from(tmp_path: Path) -> None:
    seen: list[Compilation] = []
    folder = str(tmp_path / "cache")
    settings = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        reset_cache()
        with CompileWatch(seen.append) as watch:
            for _ in range(2):
                watch.watch(jitted(0.2))(*arrays())
            jax.config.update("jax_enable_compilation_cache", False)
            reset_cache()
            watch.watch(jitted(0.3))(*arrays())
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
    assert [compilation.cache for compilation in seen] == ["miss", "hit", "off"]
    assert str(seen[0]).endswith(f", because it was not in the compile cache {folder}")
    assert str(seen[1]).startswith("some step read from the compile cache in ")
    assert "cache" not in str(seen[2])
    assert seen[1].figures()["compile_cache"] == "hit"


def reset_cache() -> None:
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def test_the_program_as_text(tmp_path: Path) -> None:
    seen: list[Compilation] = []
    check_dump_folder(tmp_path / "hlo")
    with CompileWatch(seen.append) as watch:
        step = watch.watch(jitted(0.4), tmp_path / "hlo")
        step(*arrays())
        before, after = ((tmp_path / "hlo" / name).read_text() for name in HLO_FILES)
        assert len(seen) == 1, "writing it compiles nothing twice"
        (tmp_path / "hlo" / HLO_FILES[0]).unlink()
        step(*arrays())
        assert not (tmp_path / "hlo" / HLO_FILES[0]).exists(), "once is enough"
    assert before.startswith("HloModule jit_some_step") and 'op_name="jit(some_step)/tanh"' in before
    assert "is_scheduled=true" in after
    check_dump_folder(tmp_path / "hlo")  # ours may be written over

    (tmp_path / "hlo" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--dump-hlo .* holds other files, such as notes\.txt: name a new folder"):
        check_dump_folder(tmp_path / "hlo")
    with pytest.raises(UserError, match="is a file: name a folder"):
        check_dump_folder(tmp_path / "hlo" / "notes.txt")
    with pytest.raises(UserError, match="cannot be written"):
        check_dump_folder(tmp_path / "hlo" / "notes.txt" / "below")
