"""What JAX is told before anything imports it: run on the CPU, as eight devices, and remember what was compiled.

And Ctrl-C, which is to reach the commands that tests start; and how many examples hypothesis draws in each tier.
"""

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from buckets import bucket, bucket_settings, gs, network, s3, s3_network  # noqa: F401 - fixtures
from stellarbyte_jax.machine.xla_flags import known_flags, parsers

# By environment, so that the commands which tests start in processes of their own are told as well; and here rather
# than in a hook, for pytest loads the conftest files of the folders below, which import JAX, before it calls any.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compiling takes most of the tests' time, for programs that run for milliseconds: three fifths go without LLVM's
# optimisation, without MLIR for fusions, and with a program in one piece, for pytest-xdist has the other cores at work.
# What the installed XLA does not know is left out: it would abort every process over it.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join(known_flags(FLAGS, parsers("cpu")))
# Threads of XLA's pool. With one a device, devices that wait in different collectives can take up all of them for ever.
os.environ["NPROC"] = "32"

# Many tests compile the same program: one in a run that resumes, one in the next session. This is where
# `pytest --cache-clear` looks.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "d" / "jax_programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# One thread a process for torch: pytest-xdist has a process a core, and threads that spin while another has the core
# made tests of a third of a second last twenty.
os.environ["OMP_NUM_THREADS"] = "1"

# Commands that tests start inherit it where it is ignored, as it is in a shell's background; some are sent one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The short tier draws the same examples every time; the long one ten times as many, and others every night. A test
# whose examples take long draws a fraction of `settings.default.max_examples`. There is no deadline: how long one takes
# is up to the disk and to whoever else is at work.
settings.register_profile("short", max_examples=100, derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)


# What imports and collection make is there for good: looking through it again and again took an eighth of their time.
gc.disable()


def pytest_collection_finish() -> None:
    """Spares the garbage collector the million objects of libraries that are there for good."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Spares it what outlives a module as well, such as traced programs: it took a quarter of the tests' time."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Before test modules are imported, whose own settings are made from the profile."""
    settings.load_profile("short" if "not long" in config.option.markexpr else "long")
