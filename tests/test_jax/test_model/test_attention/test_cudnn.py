"""What cuDNN is asked for: the right thing, as XLA computes it in cuDNN's place, and nothing that it cannot do."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.model.attention import cudnn as cudnn_attention
from stellarbyte_jax.model.attention.kernels import attention
from test_jax.test_model.test_attention.test_kernels import (
    BFLOAT16_MATRIX,
    BFLOAT16_TOLERANCE,
    B,
    packed_segments,
    run_case,
)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H100, as far as cudnn_attention.py sees; what it asks of cuDNN, XLA does."""
    gpu = SimpleNamespace(compute_capability="9.0")
    backend = SimpleNamespace(platform="gpu", platform_version="PJRT C API\ncuda 12080", local_devices=lambda: [gpu])
    monkeypatch.setattr(cudnn_attention, "get_backend", lambda: backend)
    dot_product_attention = jax.nn.dot_product_attention

    def in_xla(*args, implementation: str, **options):
        assert implementation == "cudnn"
        assert options["mask"] is None or options["local_window_size"] is None
        # cuDNN adds products up in float32. XLA's CPU backend of JAX 0.12 adds some of bfloat16 up in bfloat16, those
        # that it leaves to a library which then does not take the layout: so it is given float32.
        args = (x.astype(jnp.float32) for x in args)
        return dot_product_attention(*args, implementation="xla", **options).astype(jnp.bfloat16)

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("K", "G", "T", "packed", "window"), [*BFLOAT16_MATRIX, (1, 2, 64, True, 1)])
def test_what_is_asked_of_cudnn(K: int, G: int, T: int, packed: bool, window: int | None) -> None:
    run_case("cudnn", K, G, T, packed, window, dtype=jnp.bfloat16, tolerance=BFLOAT16_TOLERANCE)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("capability", "head_dim", "T", "packed", "message"),
    [
        ("9.0", 6, 64, False, "cudnn takes model.head_dim of a multiple of 8 up to 256 on this GPU, not 6"),
        ("9.0", 264, 64, False, "cudnn takes model.head_dim of a multiple of 8 up to 256 on this GPU, not 264"),
        ("8.6", 136, 64, False, "cudnn takes model.head_dim of a multiple of 8 up to 128 on this GPU, not 136"),
        ("9.0", 256, 65, True, "cudnn takes packed sequences of an even number of tokens, not 65"),
        ("12.0", 256, 65, False, None),
        ("8.0", 128, 64, True, None),
    ],
)
def test_cudnn_does_what_the_gpu_can(
    capability: str, head_dim: int, T: int, packed: bool, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cudnn_attention.get_backend()
    monkeypatch.setattr(backend.local_devices()[0], "compute_capability", capability)
    q, k = jnp.zeros((B, 1, 1, T, head_dim), jnp.bfloat16), jnp.zeros((B, 1, T, head_dim), jnp.bfloat16)
    segment_ids = packed_segments(T) if packed else None
    if message is None:
        assert attention(q, k, k, kernel="cudnn", segment_ids_BT=segment_ids).shape == q.shape
    else:
        with pytest.raises(UserError, match=message):
            attention(q, k, k, kernel="cudnn", segment_ids_BT=segment_ids)
