"""Collectives, counted through loops in what XLA wrote."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from stellarbyte_jax.planning.hlo import read_program

TPU_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%piece (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %custom-call.1 = bf16[16,8]{1,0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p: bf16[4,8]) -> bf16[16,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%p.2), channel_id=7, dimensions={0}
}

%piece.3 (p: bf16[4,8]) -> bf16[16,8] {
  %p.3 = bf16[4,8]{1,0} parameter(0)
  %all-gather.3 = bf16[16,8]{1,0} all-gather(%p.3), channel_id=7, dimensions={0}
  ROOT %custom-call.3 = bf16[16,8]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0} parameter(0)
  %all-reduce.4 = f32[16,8]{1,0} all-reduce(%input), channel_id=8, to_apply=%add
  ROOT %dynamic-slice.4 = f32[4,8]{1,0} dynamic-slice(%all-reduce.4), dynamic_slice_sizes={4,8}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %block = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %permute = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%block), channel_id=1
  %done = bf16[4,8]{1,0} collective-permute-done(%permute)
  %kernel = bf16[4,8]{1,0} custom-call(%done), custom_call_target="tpu_custom_call"
  %go = bf16[16,8]{1,0} fusion(%kernel), kind=kCustom, calls=%async_collective_fusion.2, a={"estimated_cycles":"10"}
  ROOT %next = (s32[], bf16[4,8]) tuple(%index, %kernel)
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  %state.2 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %constant.2 = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%index.2, %constant.2), direction=LT
}

%until (state: (s32[], s32[], bf16[4,8])) -> pred[] {
  %state.4 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  ROOT %less.4 = pred[]{:T(512)} compare(%index.4, %bound.4), direction=LT
}

%round (state: (s32[], s32[], bf16[4,8])) -> (s32[], s32[], bf16[4,8]) {
  %state.5 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %block.5 = bf16[4,8]{1,0} get-tuple-element(%state.5), index=2
  %swapped = bf16[4,8]{1,0} all-to-all(%block.5), channel_id=9, dimensions={0}
  %unknown = bf16[4,8]{1,0} fusion(%swapped), kind=kCustom, calls=%add, a={"estimated_cycles":"18446744073709551615"}
  ROOT %next.5 = (s32[], s32[], bf16[4,8]) tuple(%index.5, %bound.5, %unknown)
}

ENTRY %main (p0: bf16[4,8]) -> f32[4,8] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %start = bf16[16,8]{1,0} fusion(%p0), kind=kCustom, calls=%piece, a={"estimated_cycles":"100"}
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%tuple), condition=%condition, body=%body
  %rounds = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0}) while(%tuple.2), condition=%until, body=%round
  %end = bf16[16,8]{1,0} fusion(%start), kind=kCustom, calls=%piece.3
  ROOT %scattered = f32[4,8]{1,0} fusion(%end), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_tpu_program():
    report = read_program(TPU_PROGRAM)
    found = {kind: (collective.count, collective.bytes) for kind, collective in report.collectives.items()}
    assert found == {
        "all-to-all": (1, 2 * 4 * 8),  # how many rounds the data know
        "all-gather": (1, 2 * 16 * 8),  # one, though three fusions name it, one of them in a loop
        "collective-permute": (12, 12 * 2 * 4 * 8),
        "reduce-scatter": (1, 4 * 16 * 8),
    }
    assert report.cycles == 100 + 12 * 10  # the one without an estimate left out
    assert report.kernels == 12


def test_what_xla_compiles_here():
    """A sum over 4 devices in each of 6 trips of a loop in 3 trips of another."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("x")))

    def step(x, w):
        def inner(w, _):
            total = jnp.sum(x * w[0], axis=0)  # over the axis that is split
            return w + total, None

        def outer(w, _):
            return jax.lax.scan(inner, w, None, length=6)[0], None

        return jax.lax.scan(outer, w, None, length=3)[0]

    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=split)
    w = jax.ShapeDtypeStruct((1, 32), jnp.float32, sharding=whole)
    text = jax.jit(step, out_shardings=whole).lower(x, w).compile().as_text()
    found = read_program(text).collectives["all-reduce"]
    assert (found.count, found.bytes) == (18, 18 * 4 * 32)
