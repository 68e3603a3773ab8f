"""What layers keep, against arrays counted by hand and JAX's own list."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.model.flops import kernel_flops, layer_matmul_flops
from stellarbyte_jax.planning import layer_traces as saved
from stellarbyte_jax.planning import program
from stellarbyte_jax.planning.layer_traces import LayerTraces, SavedByLayers
from stellarbyte_jax.planning.tiles import padded_bytes

ONE = {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}


def saved_by_layers(config, rows: int, platform: str = "gpu", **sizes: int) -> SavedByLayers:
    return LayerTraces(config, platform).saved(config.training.remat, ONE | sizes, rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "free", "expected"),
    [
        ((8, 128), "float32", False, 4 * 8 * 128),
        ((7, 100), "bfloat16", False, 2 * 8 * 128),
        ((3, 2048, 64), "bfloat16", False, 2 * 3 * 2048 * 128),
        ((3, 2048, 64), "bfloat16", True, 2 * 3 * 2048 * 64),
        ((5, 1, 1, 768), "float32", False, 4 * 8 * 768),
        ((768,), "float32", False, 4 * 768),
        ((), "int32", False, 4),
    ],
)
def test_tiles(shape, dtype, free, expected):
    assert padded_bytes(shape, dtype, free=free) == expected
    assert padded_bytes(shape, dtype, pad=False) == jax.ShapeDtypeStruct(shape, dtype).size * jnp.dtype(dtype).itemsize


# On a GPU nothing is padded, so the bytes can be added up by hand.
def test_a_layer_added_up(planned_run):
    config = planned_run(training={"dtype": "bfloat16"}, intermediate_size=32, position_embedding="none")
    B, T, D, F, N, K, H, L = 2, 128, 16, 32, 4, 2, 4, 2
    saved = saved_by_layers(config, B)
    norm = B * T * (4 * D + 2 * 4 + 2 * D + 2 * D)  # its input, mean and 1 / rms in float32; normed, and scaled
    attention = 2 * B * T * (N * H + 2 * K * H + N * H) + 4 * B * T * N  # q, k, v, output and each row's logsumexp
    joined = 2 * B * T * N * H  # the output again, heads side by side
    feed_forward = 2 * B * T * 3 * F  # gate, up and their product
    assert saved.activations == L * (2 * norm + attention + joined + feed_forward)
    assert saved.weights == 2 * L * (2 * D * N * H + 2 * D * K * H + 3 * D * F + 2 * D)


def test_more_rows_keep_more_and_weigh_the_same(planned_run):
    config = planned_run()
    one, three = (saved_by_layers(config, rows) for rows in (1, 3))
    assert three.activations == 3 * one.activations
    assert three.weights == one.weights


@pytest.mark.parametrize("kernel", ["reference", "splash"])
def test_remat_keeps_less_and_works_it_out_again(planned_run, kernel):
    """full keeps a layer's input, [B, T, D] float32, alone, and does the forward pass's matmuls twice."""
    training = {"attention_kernel": kernel}
    plain = saved_by_layers(planned_run(training=training), 2)
    full = saved_by_layers(planned_run(training=training | {"remat": "full"}), 2)
    assert plain.kernels_again == 0
    assert full.activations == 2 * 4 * 2 * 128 * 16
    assert plain.working < full.working
    config = planned_run().model
    projections = 2 * 128 * 2 * layer_matmul_flops(config)
    last = 2 * 128 * 2 * 2 * config.hidden_size * config.intermediate_size  # down_proj: nobody needs what it put out
    scores = 2 * kernel_flops(config, 2, 128, 1) * 2 if kernel == "reference" else 0
    assert full.flops - plain.flops == pytest.approx(projections - last + scores, rel=0.02)
    assert full.kernels_again == (kernel == "splash")


def test_masks_of_dropout_are_activations(planned_run):
    plain, dropped = (
        saved_by_layers(planned_run(residual_dropout=rate, training={"attention_kernel": "reference"}), 2, "tpu")
        for rate in (0.0, 0.5)
    )
    assert dropped.weights == plain.weights
    assert dropped.activations > plain.activations


def test_tensor_axes_share_heads_and_channels(planned_run):
    config = planned_run()
    whole, half = saved_by_layers(config, 2), saved_by_layers(config, 2, tensor=2)
    # What goes into the projections is all there, what comes out is not; neither is the residual stream.
    inputs = 2 * 2 * 4 * 2 * 128 * 16
    assert half.activations == whole.activations // 2 + inputs // 2
    assert half.flops == whole.flops // 2
    with pytest.raises(UserError, match=r"mesh.tensor 4 does not divide model.num_key_value_heads 2"):
        saved_by_layers(config, 2, tensor=4)


def test_what_meshes_have_in_common_is_traced_once(planned_run, monkeypatch):
    seen = []
    trace = program.layer_loops
    monkeypatch.setattr(saved, "layer_loops", lambda *arguments: seen.append(arguments) or trace(*arguments))
    traces = LayerTraces(planned_run(), "gpu")
    few, many = traces.saved("none", ONE, 3), traces.saved("none", ONE | {"data": 8, "fsdp": 4}, 3)
    assert len(seen) == 2  # of one row and of two
    assert many == dataclasses.replace(few, weights=few.weights // 4)


def test_a_line_through_one_and_two_rows(planned_run):
    """What experts exchange is in proportion, too: five rows are what five rows are traced to be."""
    config, sizes = planned_run(num_experts=4), ONE | {"expert": 2, "fsdp": 2}
    traces = LayerTraces(config, "gpu")
    loops = program.layer_loops(config, sizes, 5, "gpu", "none")
    five = traces._study(loops, sizes, 5, "none", 0)
    found = traces.saved("none", sizes, 5)
    assert found.received.pop("data") == 0
    assert found == five
