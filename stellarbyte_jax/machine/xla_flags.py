"""The flags that XLA is given where it compiles for GPUs or TPUs, in one table."""

import mmap
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Platform = Literal["gpu", "tpu"]

# GPUs: collectives of one layer run while another computes, as NVIDIA's JAX-Toolbox has it for language models on
# Hopper (rosetta/docs/GPU_performance.md, what its level O1 turns on). Not here: the level, JAX_OPTIMIZATION_LEVEL=O1,
# against which a user's =false would be in vain; double buffering of loops, which holds two layers' gathered
# parameters; thresholds of combined collectives, whose best values follow the model's size.
# TPUs: none. MaxText's for collectives (async collective fusion and its kind, the data-parallel all-reduce's) are
# libtpu's own defaults or make no difference: a step of configs/run/1b.yaml on v5e:4x4 compiles to the same cycles and
# bytes with them (libtpu 0.0.52).
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
    """(the variable to set so that XLA compiles for a platform, a line that says so); nothing for None, a CPU.

    A flag that the environment has already, with whatever value, stays as it is.
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
    """What JAX will run on, before it is started; None for a CPU, or what has no flags.

    JAX_PLATFORMS decides. Without it JAX takes TPUs before GPUs before the CPU, of those for which there is both a
    device, which is a file in /dev, and a plugin, which is a package: both are looked up in under a millisecond, where
    asking JAX would start it, and it reads its flags at the start.
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
    """The table's flags that a variable with this text does not set."""
    names = {_name(flag) for flag in present.split()}
    return tuple(flag for flag in FLAGS[platform] if not {_name(flag), f"no{_name(flag)}"} & names)


def known_flags(flags: Collection[str], parsers: Sequence[Path]) -> tuple[str, ...]:
    """Those that each parser knows: XLA aborts the process over any other, and flags come and go with its versions.

    A parser's library has the names of its flags in it, letter by letter, each as a string of its own: between zeros.
    Of a flag that was taken out its protocol buffer still has the name, inside a longer text.
    """
    known = tuple(flags) if parsers else ()
    for parser in parsers:
        with parser.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            known = tuple(flag for flag in known if library.find(b"\0%b\0" % _name(flag).encode()) >= 0)
    return known


def parsers(platform: Platform | Literal["cpu"]) -> list[Path]:
    """The libraries that read a platform's flags, as far as they are installed."""
    if platform == "tpu":
        return _libraries("libtpu", "libtpu.so")
    # jaxlib's own CPU backend reads XLA_FLAGS, too.
    return _libraries("jaxlib", "libjax_common.so") + (_gpu_plugins() if platform == "gpu" else [])


def _gpu_plugins() -> list[Path]:
    return _libraries("jax_plugins", "xla_cuda*/*.so")


def _libraries(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [path for folder in folders for path in Path(folder).glob(pattern)]


def _name(flag: str) -> str:
    return flag.partition("=")[0].lstrip("-")
