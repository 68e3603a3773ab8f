"""The kinds of chips: what each can hold, compute and carry."""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, per second and in bytes; bandwidths of links count one direction.

    hbm_bytes: what a program may use; the rest is the runtime's own.
    largest: how many chips one slice may have; a node's GPUs for GPUs.
    ring: a torus axis of a multiple of so many chips closes into a ring, which carries both ways round.
    link: ICI's bandwidth of one link, a torus axis having one to each side; NVLink's of a whole GPU.
    network: what one chip gets of the data-centre network (TPUs) or InfiniBand (GPUs).
    host_bandwidth: to the host's memory and back, over PCIe.
    price: US dollars a chip and hour on demand, as listed in 2025; None where no list price is public.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    hbm_bytes: float
    peak_flops: dict[str, float]
    hbm_bandwidth: float
    largest: int
    torus_axes: int
    ring: int
    link: float
    network: float
    host_bandwidth: float
    price: float | None


def _one_pass(peak: float) -> dict[str, float]:
    """A TPU's: float32 matmuls take one bfloat16 pass by JAX's default."""
    return {"bfloat16": peak, "float32": peak}


_TENSOR_CORES = {"bfloat16": 989e12, "float32": 494e12}  # TF32, without sparsity

# Peak, HBM bandwidth, slices and network: Google's pages of the chips, docs.cloud.google.com/tpu/docs/v4, v5e,
# v5p-training and v6e (network: 6.4 and 25.6 Tbit/s a pod of 256, 50 Gbit/s a v5p chip; v4's page names none, it is
# taken to be v5p's). Links, and the host's 1.5e10: "How to Scale Your Model", part 2
# (jax-ml.github.io/scaling-book/tpus); the links agree with the pages' ICI figure, which adds up all ports and both
# directions. What of the HBM a program may use is what the TPU compiler itself says where one does not fit. H100, H200:
# data sheets of the SXM cards, NVLink 4, PCIe 5, one 400 Gbit/s port a GPU.
# Prices: cloud.google.com/tpu/pricing, US regions, as remembered; only v4's 3.22 and v5e's 1.20 were found named
# elsewhere, v5p's and v6e's could not be checked: give --price. GPUs' differ by a factor of four between clouds.
_CHIPS = (
    Chip("v4", "tpu", 31.25 * GIB, _one_pass(275e12), 1.2e12, 4096, 3, 4, 45e9, 6.25e9, 15e9, 3.22),
    Chip("v5e", "tpu", 15.75 * GIB, _one_pass(197e12), 0.819e12, 256, 2, 16, 50e9, 3.125e9, 15e9, 1.20),
    Chip("v5p", "tpu", 95.74 * GIB, _one_pass(459e12), 2.765e12, 6144, 3, 4, 100e9, 6.25e9, 15e9, 4.20),
    Chip("v6e", "tpu", 31.25 * GIB, _one_pass(918e12), 1.638e12, 256, 2, 16, 100e9, 12.5e9, 32e9, 2.70),
    Chip("h100", "gpu", 79.1 * GIB, _TENSOR_CORES, 3.35e12, 8, 2, 1, 450e9, 50e9, 64e9, None),
    Chip("h200", "gpu", 139.8 * GIB, _TENSOR_CORES, 4.8e12, 8, 2, 1, 450e9, 50e9, 64e9, None),
)
CHIPS = {chip.name: chip for chip in _CHIPS}

# By JAX's `device_kind`, letter by letter: other forms of a card, such as "NVIDIA H100 PCIe", are slower.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for one that is not in the table, such as a CPU."""
    name = _KINDS.get(device_kind)
    return None if name is None else CHIPS[name]
