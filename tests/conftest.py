"""What JAX is told before any test imports it: run on the CPU, as eight devices, and remember what was compiled."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # By environment, so that the commands which tests start in processes of their own are told as well.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = "8"
    # Many tests compile the same program: one in a test run that resumes, one in the next session.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax_programs"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
