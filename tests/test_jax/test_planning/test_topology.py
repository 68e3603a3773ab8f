"""How chips are named, and who gets which wires."""

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.planning.topology import axis_bandwidths, mesh_sizes, parse_topology


def sizes(topology: str, **mesh: int) -> dict[str, int]:
    return mesh_sizes(MeshConfig(**mesh), parse_topology(topology))


def bandwidths(topology: str, **mesh: int) -> dict[str, float]:
    links = axis_bandwidths(parse_topology(topology), sizes(topology, **mesh))
    link = parse_topology(topology).chip.link
    return {axis: bandwidth / link for axis, bandwidth in links.items()}


def test_names():
    assert parse_topology("v5p:4x4x8").size == 128
    assert str(parse_topology("h100:8x4")) == "h100:8x4"
    # Google's tables of slices, the largest among them.
    for slices in ("v5e:2x4", "v6e:8x16", "v4:2x2x4", "v4:16x16x16", "v5p:2x2x1", "v5p:4x8x8", "v5p:16x16x24"):
        assert parse_topology(slices).name == slices


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("v9:4x4", "names no known chip: use v4, v5e, v5p, v6e, h100"),
        ("v5e", "must give 2 sides for v5e, as in v5e:4x4"),
        ("v5p:4x4", "must give 3 sides for v5p, as in v5p:4x4x4"),
        ("v5e:0x4", "must give 2 sides"),
        ("h100:16x2", "at most 8"),
        ("v5e:3x5", r"no slice that Google offers: the nearest are v5e:4x4 and v5e:2x4$"),
        ("v5e:1x256", "the nearest are v5e:16x16 and"),
        ("v5e:8x4", "the nearest are v5e:4x8 and"),
        ("v6e:2x1", "the nearest are v6e:1x1 and v6e:2x2"),
        ("v4:1x1x1", "the nearest are v4:2x2x1 and"),
        ("v4:4x4x6", "the nearest are v4:4x4x8 and v4:4x4x4"),
        ("v5p:3x5x7", "the nearest are v5p:4x4x8 and v5p:4x4x4"),
        ("v5p:24x16x16", "the nearest are v5p:16x16x24 and"),
        ("h100:3x2", "nodes have 1, 2, 4 or 8 GPUs"),
        ("h100:8x1000000", "at most 16384 of them"),
        (f"v5e:{'9' * 5000}x1", "must give 2 sides"),
        ("v5e:16x32", "is 512 chips, slices of v5e have at most 256: use --slices"),
    ],
)
def test_what_is_no_topology(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_topology(text)


def test_one_axis_is_worked_out():
    found = sizes("v5e:4x4", data=1, fsdp=-1, tensor=4)
    assert (found["data"], found["fsdp"], found["tensor"]) == (1, 4, 4)
    with pytest.raises(UserError, match=r"--topology v5e:4x4 has 16"):
        sizes("v5e:4x4", data=3)


def test_a_gather_over_the_whole_torus_uses_all_links():
    # 16 closes a ring on v5e and 4 does not; both of a chip's sides have two links where they do.
    assert bandwidths("v5e:16x16", data=1, fsdp=-1) == {"fsdp": 4}
    assert bandwidths("v5e:4x4", data=1, fsdp=-1) == {"fsdp": 2}
    assert bandwidths("v5p:4x4x4", data=1, fsdp=-1) == {"fsdp": 6}


def test_the_innermost_axis_has_a_side_for_itself():
    assert bandwidths("v5p:4x4x4", data=1, fsdp=16, tensor=4) == {"tensor": 2, "fsdp": 4}
    # Two axes share a side: none of them goes round it.
    assert bandwidths("v5p:4x4x4", data=1, fsdp=32, tensor=2) == {"tensor": 1, "fsdp": 5}


def test_slices_talk_over_the_network():
    topology = parse_topology("v5e:16x16", slices=2)
    chip = topology.chip
    spread = mesh_sizes(MeshConfig(data=2, fsdp=-1), topology)
    assert spread["fsdp"] == 256
    # Each chip fetches its own part of the sum alone.
    assert axis_bandwidths(topology, spread) == {"fsdp": 4 * chip.link, "data": chip.network}
    whole = mesh_sizes(MeshConfig(data=1, fsdp=-1), topology)
    assert axis_bandwidths(topology, whole) == {"fsdp": min(4 * chip.link, 256 * chip.network)}
    small = parse_topology("v5e:4x4", slices=2)
    with pytest.raises(UserError, match=r"mesh.slices 2 divides neither"):
        axis_bandwidths(small, mesh_sizes(MeshConfig(data=1, tensor=32), small))
    with pytest.raises(UserError, match=r"--slices 2 must be"):
        parse_topology("h100:8x4", slices=2)


def test_gpus_leave_their_node_by_infiniband():
    # 8 GPUs have 400 GB/s together, less than NVLink's 450.
    assert bandwidths("h100:8x4", data=1, fsdp=4, tensor=8)["tensor"] == 1
    assert bandwidths("h100:8x4", data=1, fsdp=-1)["fsdp"] == pytest.approx(400 / 450)
    assert bandwidths("h100:8x4", data=1, fsdp=4, tensor=8)["fsdp"] == pytest.approx(50 / 450)
