"""Attention on GPUs: the choice of implementation, the calls of cuDNN, and memory. Only `-m gpu` runs on a GPU."""

import json
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import abstract_encoder
from flax import nnx
from paths import GOLDENS

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.models.attention import attend, attend_at_once, attend_by_cudnn, attend_by_head
from stella_jax.sharding import cuda_generation, make_mesh

CALL = re.compile(r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "(.*?)", operand_layouts')
SHAPE = (4, 64, 16, 64)
PLAIN = jax.nn.dot_product_attention
LENGTHS = jax.ShapeDtypeStruct((4,), jnp.int32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Simulates GPUs of a generation for tracing and lowering attention."""

    def pretend(generation: int) -> None:
        monkeypatch.setattr("stella_jax.models.attention.platform", lambda: "gpu")
        monkeypatch.setattr("stella_jax.models.attention.cuda_generation", lambda: generation)
        # JAX asks for cuDNN's version while it traces; there is no public way to lower for CUDA without it.
        monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_200)

    return pretend


def cudnn_calls(function: Callable[..., Any], dtype: Any = jnp.bfloat16, shape: tuple = SHAPE) -> dict[str, dict]:
    """The cuDNN kernels in a program for CUDA of q, k, v and lengths: names and settings."""
    heads = jax.ShapeDtypeStruct(shape, dtype)
    return kernels(function, heads, heads, heads, LENGTHS)


def kernels(function: Callable[..., Any], *arguments: Any) -> dict[str, dict]:
    fresh = jax.jit(lambda *arguments: function(*arguments))  # so that it was not traced for another platform
    text = fresh.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return {name: json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"]
            for name, config in CALL.findall(text)}  # fmt: skip


def test_cudnn_ignores_padding(gpu) -> None:
    gpu(9)
    ((name, config),) = cudnn_calls(attend).items()
    assert name == "__cudnn$fmhaSoftmax"
    assert config["mask_type"] == "PADDING"
    assert config["fmha_scale"] == 1 / 8
    assert config["dropout_rate"] == 0
    assert config["intermediate_tensor_shape"]["element_type"] == "BF16"
    assert config["intermediate_tensor_shape"]["dimensions"] == ["4", "16", "64", "64"]


def test_gradient_uses_cudnn(gpu) -> None:
    gpu(8)

    def gradient(q, k, v, lengths):
        return jax.grad(lambda q, k, v: attend(q, k, v, lengths).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    calls = cudnn_calls(gradient)
    assert set(calls) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert {config["mask_type"] for config in calls.values()} == {"PADDING"}


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.nothing_saveable])
def test_encoder_and_gradient_use_cudnn(gpu, policy) -> None:
    gpu(9)
    config = Checkpoint.open(GOLDENS / "stella").spec.config
    graphdef, state = abstract_encoder(config, jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((4, 32), jnp.int32)

    def total(state, ids, lengths):
        return nnx.merge(graphdef, state)(ids, lengths, remat_policy=policy)[0].sum()

    assert set(kernels(total, state, ids, LENGTHS)) == {"__cudnn$fmhaSoftmax"}
    both = kernels(jax.grad(total), state, ids, LENGTHS)
    assert set(both) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    shapes = {tuple(call["intermediate_tensor_shape"]["dimensions"]) for call in both.values()}
    assert shapes == {("4", str(config.num_attention_heads), "32", "32")}


def test_each_gpu_has_its_own_rows_and_heads(gpu) -> None:
    gpu(9)
    with jax.set_mesh(make_mesh("data=2,model=4")):
        (config,) = cudnn_calls(attend).values()
    assert config["intermediate_tensor_shape"]["dimensions"] == ["2", "4", "64", "64"]


@pytest.mark.parametrize(
    ("generation", "dtype", "head_dim"),
    [
        (9, jnp.float32, 64),  # cuDNN has only 16 bits, and float32 must stay float32
        (7, jnp.bfloat16, 64),  # Turing
        (0, jnp.bfloat16, 64),  # AMD
        (9, jnp.bfloat16, 12),
        (9, jnp.bfloat16, 256),
    ],
)
def test_unsupported_heads_do_not_use_cudnn(gpu, generation: int, dtype: Any, head_dim: int) -> None:
    gpu(generation)
    assert cudnn_calls(attend, dtype, (*SHAPE[:3], head_dim)) == {}


@pytest.mark.parametrize(
    ("capabilities", "generation"), [(["9.0"], 9), (["12.0", "8.6"], 8), (["gfx942"], 0), (["8.0", None], 0)]
)
def test_oldest_gpu_decides(monkeypatch: pytest.MonkeyPatch, capabilities: list, generation: int) -> None:
    devices = [SimpleNamespace(compute_capability=c) if c else SimpleNamespace() for c in capabilities]
    monkeypatch.setattr("jax.local_devices", lambda backend: devices)
    assert cuda_generation() == generation


def peaked(tokens: int, dtype: Any = jnp.float32) -> Any:
    """q, k, v for which one key too many or too few matters, and lengths of a full and a short row."""
    rng = np.random.default_rng(tokens)
    heads = [scale * rng.standard_normal((2, tokens, 2, 64), dtype=np.float32) for scale in (3, 3, 1)]
    return [*(jnp.asarray(x, dtype) for x in heads), jnp.array([tokens, max(1, tokens // 3)], jnp.int32)]


@jax.custom_vjp
def stand_in(q, k, v, lengths):
    """Stands in for cuDNN: the same function, but the padding's gradient is uninitialized memory, here NaN."""
    return PLAIN(q, k, v, key_value_seq_lengths=lengths)


def stand_in_forward(q, k, v, lengths):
    out, vjp = jax.vjp(partial(PLAIN, key_value_seq_lengths=lengths), q, k, v)
    return out, (vjp, lengths)


def stand_in_backward(residuals, cotangents):
    vjp, lengths = residuals
    dq, dk, dv = vjp(cotangents)
    real = jnp.arange(dk.shape[1])[None, :, None, None] < lengths[:, None, None, None]
    return dq, jnp.where(real, dk, jnp.nan), jnp.where(real, dv, jnp.nan), None


stand_in.defvjp(stand_in_forward, stand_in_backward)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(q, k, v, *, key_value_seq_lengths, implementation):
        assert implementation == "cudnn" and key_value_seq_lengths.dtype == jnp.int32
        return stand_in(q, k, v, key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", called)


@pytest.mark.parametrize("tokens", [8, 64, 200])
def test_results_around_the_kernel(cudnn, tokens: int) -> None:
    q, k, v, lengths = peaked(tokens)
    found = jax.jit(attend_by_cudnn)(q, k, v, lengths)
    np.testing.assert_allclose(found, jax.jit(stand_in)(q, k, v, lengths), atol=2e-5, rtol=0)


def test_padding_gives_no_nan(cudnn) -> None:
    q, k, v, lengths = peaked(48)
    real = jnp.arange(48)[None, :, None, None] < lengths[:, None, None, None]
    poisoned = [jnp.where(real, x, jnp.nan) for x in (k, v)]
    attention = jax.jit(attend_by_cudnn)
    np.testing.assert_array_equal(attention(q, *poisoned, lengths), attention(q, k, v, lengths))
    gradient = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, lengths).sum(), argnums=(0, 1, 2)))(q, k, v)
    assert all(jnp.isfinite(x).all() for x in gradient)
    assert (jnp.where(real, 0, gradient[2]) == 0).all()


@pytest.mark.parametrize("tokens", [24, 512, 640, 1024])
def test_attention_at_once(tokens: int) -> None:
    heads = peaked(tokens)
    np.testing.assert_allclose(attend_at_once(*heads), attend_by_head(*heads), atol=2e-5, rtol=0)


@pytest.mark.parametrize("tokens", [128, 512, 2048, 8192])
def test_memory_does_not_grow_with_row_length(tokens: int) -> None:
    """16,384 tokens and 16 heads: 512 MiB of scores, as much for their softmax, and some copies of q."""
    rows = 16_384 // tokens
    heads = jax.ShapeDtypeStruct((rows, tokens, 16, 64), jnp.float32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    memory: Any = jax.jit(attend_at_once).lower(heads, heads, heads, lengths).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 2**29 + 5 * 2**26


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [8, 64, 72, 192, 512, 640])
def test_cudnn_on_a_gpu(tokens: int) -> None:
    q, k, v, lengths = peaked(tokens, jnp.bfloat16)

    def gradients(attention):
        def total(q, k, v):
            return attention(q, k, v, lengths).astype(jnp.float32).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

    found, again = (jax.jit(attend)(q, k, v, lengths) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(np.float32(found), np.float32(attend_at_once(q, k, v, lengths)), atol=0.03, rtol=0)
    for ours, reference in zip(gradients(attend), gradients(attend_at_once), strict=True):
        largest = np.abs(np.float32(reference)).max()
        np.testing.assert_allclose(np.float32(ours), np.float32(reference), atol=0.05 * largest, rtol=0)
