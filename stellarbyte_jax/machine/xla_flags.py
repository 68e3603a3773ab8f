"""The one table of the flags that XLA gets when it compiles for GPUs or TPUs."""

import mmap
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Platform = Literal["gpu", "tpu"]

# GPUs: collectives of one layer run while another layer computes. NVIDIA's JAX-Toolbox recommends these flags for
# language models on Hopper (rosetta/docs/GPU_performance.md, the flags that level O1 turns on). Three things are left
# out: the level itself, JAX_OPTIMIZATION_LEVEL=O1, because it overrules a user's =false; double buffering of loops,
# which holds the gathered parameters of two layers; and thresholds of combined collectives, whose best values depend
# on the model's size.
# TPUs: none. MaxText's flags for collectives (async collective fusion and the like, those of the data-parallel
# all-reduce) are libtpu's defaults or make no difference: with them a step of configs/run/1b.yaml on v5e:4x4 compiles
# to the same cycles and bytes (libtpu 0.0.52).
FLAGS: Mapping[Platform, tuple[str, ...]] = {
    "gpu": (
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_pipelined_all_gather=true",
        "--xla_gpu_enable_pipelined_reduce_scatter=true",
        "--xla_gpu_enable_pipelined_all_reduce=true",
    ),
    "tpu": (),
}

# The variable that each platform's compiler reads.
VARIABLES: Mapping[Platform, str] = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}

_NAMES: Mapping[Platform, str] = {"gpu": "GPUs", "tpu": "TPUs"}


def flag_settings(environment: Mapping[str, str], platform: Platform | None) -> tuple[dict[str, str], str | None]:
    """(the variable with the platform's flags for XLA, a line that says so); ({}, None) for None, which is a CPU.

    A flag that the environment already sets keeps its value.
    """
    if platform is None or not FLAGS[platform]:
        return {}, None
    variable = VARIABLES[platform]
    present = environment.get(variable, "").strip()
    if present and not present.startswith("-"):  # XLA reads its flags from a file of this name
        return {}, f"no XLA flags for {_NAMES[platform]} are added: {variable} names a file"
    missing = missing_flags(platform, present)
    added = known_flags(missing, parsers(platform))
    if not added:
        return {}, None
    left_out = ", ".join(_name(flag) for flag in missing if flag not in added)
    unknown = f"; unknown to this jaxlib: {left_out}" if left_out else ""
    line = (
        f"XLA flags for {_NAMES[platform]}: {' '.join(added)} ({variable} overrides, --no-xla-flags sets none{unknown})"
    )
    return {variable: " ".join([*present.split(), *added])}, line


def platform_here(environment: Mapping[str, str], root: Path = Path("/")) -> Platform | None:
    """The platform that JAX will run on, found without starting JAX; None for a CPU or another one without flags.

    JAX_PLATFORMS decides. If it is not set, JAX prefers TPUs to GPUs to the CPU, and takes a platform only if it has
    both a device (a file in /dev) and a plugin (a package). This function looks for these, which takes less than a
    millisecond. It cannot ask JAX: that would start it, and JAX reads its flags at the start.
    """
    wanted = environment.get("JAX_PLATFORMS", "").partition(",")[0].strip()
    if wanted:
        named: dict[str, Platform] = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}
        return named.get(wanted)
    devices = root / "dev"
    if find_spec("libtpu") is not None and _any_device(devices, "accel[0-9]*", "vfio/[0-9]*"):
        return "tpu"
    if _gpu_plugins() and _any_device(devices, "nvidia[0-9]*", "dxg"):  # dxg: Windows' Linux
        return "gpu"
    return None


def _any_device(folder: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def missing_flags(platform: Platform, present: str) -> tuple[str, ...]:
    """The flags of the table that a variable with the text `present` does not set."""
    names = {_name(flag) for flag in present.split()}
    return tuple(flag for flag in FLAGS[platform] if not {_name(flag), f"no{_name(flag)}"} & names)


def known_flags(flags: Collection[str], parsers: Sequence[Path]) -> tuple[str, ...]:
    """The flags that every parser knows. XLA aborts the process over an unknown flag, and its versions differ in them.

    A parser's library contains the name of each of its flags as a string of its own, between zero bytes. The name of a
    flag that was removed remains in a protocol buffer, but there it stands inside a longer text.
    """
    known = tuple(flags) if parsers else ()
    for parser in parsers:
        with parser.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            known = tuple(flag for flag in known if library.find(b"\0%b\0" % _name(flag).encode()) >= 0)
    return known


def parsers(platform: Platform | Literal["cpu"]) -> list[Path]:
    """The installed libraries that read a platform's flags."""
    if platform == "tpu":
        return _libraries("libtpu", "libtpu.so")
    # The CPU backend in jaxlib reads XLA_FLAGS, too.
    return _libraries("jaxlib", "libjax_common.so") + (_gpu_plugins() if platform == "gpu" else [])


def _gpu_plugins() -> list[Path]:
    return _libraries("jax_plugins", "xla_cuda*/*.so")


def _libraries(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [path for folder in folders for path in Path(folder).glob(pattern)]


def _name(flag: str) -> str:
    return flag.partition("=")[0].lstrip("-")
