"""The kinds of chips: memory, compute, bandwidths and price of each."""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip. Sizes are in bytes and rates per second; a link's bandwidth counts one direction.

    hbm_bytes: the memory that a program may use; the runtime keeps the rest.
    largest: the largest number of chips in a slice; for GPUs, of GPUs in a node.
    ring: a torus axis whose size is a multiple of this closes into a ring, which carries data both ways round.
    link: the bandwidth of one ICI link, of which a torus axis has one to each side; for GPUs, a whole GPU's NVLink.
    network: one chip's share of the data-centre network (TPUs) or of InfiniBand (GPUs).
    host_bandwidth: the bandwidth to the host's memory and back, over PCIe.
    price: US dollars for one chip and hour on demand, as listed in 2025; None if no list price is public.
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
    """Peak FLOPs of a TPU; by JAX's default its float32 matmuls are one bfloat16 pass."""
    return {"bfloat16": peak, "float32": peak}


_TENSOR_CORES = {"bfloat16": 989e12, "float32": 494e12}  # TF32, without sparsity

# Peak, HBM bandwidth, slices and network: Google's pages of the chips, docs.cloud.google.com/tpu/docs/v4, v5e,
# v5p-training and v6e (network: 6.4 and 25.6 Tbit/s a pod of 256, 50 Gbit/s a v5p chip; v4's page names none, it is
# taken to be v5p's). Links, and the host's 1.5e10: "How to Scale Your Model", part 2
# (jax-ml.github.io/scaling-book/tpus); the links agree with the pages' ICI figure, which adds up all ports and both
# directions. The HBM that a program may use is the limit that the TPU compiler names when a program does not fit. H100,
# H200: data sheets of the SXM cards, NVLink 4, PCIe 5, one 400 Gbit/s port for each GPU.
# Prices: cloud.google.com/tpu/pricing, US regions, from memory. Other pages confirm only v4's 3.22 and v5e's 1.20;
# v5p's and v6e's could not be checked, so give --price. Prices of GPUs differ by a factor of four between clouds.
_CHIPS = (
    Chip("v4", "tpu", 31.25 * GIB, _one_pass(275e12), 1.2e12, 4096, 3, 4, 45e9, 6.25e9, 15e9, 3.22),
    Chip("v5e", "tpu", 15.75 * GIB, _one_pass(197e12), 0.819e12, 256, 2, 16, 50e9, 3.125e9, 15e9, 1.20),
    Chip("v5p", "tpu", 95.74 * GIB, _one_pass(459e12), 2.765e12, 6144, 3, 4, 100e9, 6.25e9, 15e9, 4.20),
    Chip("v6e", "tpu", 31.25 * GIB, _one_pass(918e12), 1.638e12, 256, 2, 16, 100e9, 12.5e9, 32e9, 2.70),
    Chip("h100", "gpu", 79.1 * GIB, _TENSOR_CORES, 3.35e12, 8, 2, 1, 450e9, 50e9, 64e9, None),
    Chip("h200", "gpu", 139.8 * GIB, _TENSOR_CORES, 4.8e12, 8, 2, 1, 450e9, 50e9, 64e9, None),
)
CHIPS = {chip.name: chip for chip in _CHIPS}

# JAX's `device_kind` -> chip. The whole name must match: other forms of a card, such as "NVIDIA H100 PCIe", are slower.
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
    """The chip with this name in JAX; None if the table does not have it, as for a CPU."""
    name = _KINDS.get(device_kind)
    return None if name is None else CHIPS[name]
