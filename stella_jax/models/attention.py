"""Rotary positions, and attention: one function, `attend`, with one implementation per platform."""

import math
from collections.abc import Callable
from functools import wraps

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.checkpoint.config import Rope
from stella_jax.sharding import cuda_generation, per_device, platform

# Number of queries scored at a time in plain XLA: T x 512 float32 scores of one head stay in a core's cache up to a few
# thousand tokens, and those of a GPU's batch in its memory.
QUERY_CHUNK = 512

# The first NVIDIA GPUs for which cuDNN has flash attention, and the largest head_dim that it supports on all of them.
AMPERE = 8
CUDNN_HEAD_DIM = 128

# The TPU kernel's tile, and the maximum tokens per step: its default of 128 is slow, and more fill the chip's memory.
FLASH_TILE = 128
FLASH_TOKENS = 1024


def rope_tables(rope: Rope, num_tokens: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the positions 0..T-1, each (T, H/2) float32.

    Every step is rounded to float32, as in the reference: at 8192 tokens, one more exact bit of a frequency would
    rotate a head by 5e-4.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(rope.theta) ** exponents).astype(np.float32)
    frequencies = np.float32(1.0) / powers / np.float32(rope.divisor)
    angles = np.arange(num_tokens, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(x: jax.Array, cos: jax.Array | np.ndarray, sin: jax.Array | np.ndarray) -> jax.Array:
    """Rotates the halves of each head by its position's angle, in float32.

    Args:
      x: (B, T, ..., H), any float dtype; the result has the same dtype.
      cos, sin: (T, H/2) float32, from `rope_tables`.
    """
    between = (1,) * (x.ndim - 3)
    cos, sin = (jnp.asarray(table).reshape(1, -1, *between, table.shape[-1]) for table in (cos, sin))
    return (rotate_by_matmul if platform() == "tpu" else rotate_by_halves)(x, cos, sin)


def rotate_by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


def rotate_by_matmul(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`rotate` with the matrix unit swapping the halves, which is exact: every number is multiplied by 1 once.

    A TPU keeps halves of 32 numbers in 128 lanes each, and splitting and joining them goes through memory three times.
    """
    half = x.shape[-1] // 2
    swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=1)
    exact = jax.lax.Precision.HIGHEST
    swapped = jnp.einsum("...h,hg->...g", x, swap, precision=exact, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the first `lengths[b]` keys of each row, scores and softmax in float32.

    There is one implementation per platform, chosen by the mesh in context.

    Args:
      q: (B, T, N, H).
      k, v: (B, T, G, H), where G divides N: queries of head n attend to keys of head n // (N / G).
      lengths: (B,) int32, at least 1 each; later keys are padding.

    Returns:
      (B, T, N, H) in q's dtype.
    """
    return per_device(_implementation(q))(q, k, v, lengths)


def _implementation(q: jax.Array) -> Callable[..., jax.Array]:
    match platform():
        case "tpu":
            return attend_on_tpu
        case "gpu":
            return attend_by_cudnn if cudnn_takes(q) else attend_at_once
        case _:
            return attend_by_head


def by_group(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Extends an `attend` for equally many query and key heads to N query heads and G key heads.

    Query heads that share keys become one head with more queries, (B, N / G * T, G, H), so no key is repeated.
    """

    @wraps(attend)
    def grouped(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
        B, T, N, H = q.shape
        G = k.shape[2]
        if G == N:
            return attend(q, k, v, lengths)
        q = q.reshape(B, T, G, N // G, H).transpose(0, 3, 1, 2, 4).reshape(B, N // G * T, G, H)
        out = attend(q, k, v, lengths).reshape(B, N // G, T, G, H)
        return out.transpose(0, 2, 3, 1, 4).reshape(B, T, N, H)

    return grouped


@by_group
def attend_by_head(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` in plain XLA.

    It maps over rows, heads and blocks of queries, so that the scores of only one block exist at a time and memory
    grows with T, not with N * T * T.
    """
    B, T, N, H = q.shape
    S = k.shape[1]
    scale = 1 / math.sqrt(H)
    chunk = _query_chunk(T)
    padding = jnp.where(jnp.arange(S)[None, None] < lengths[:, None, None], 0.0, -jnp.inf)  # (B, 1, S)

    def block(q, k, v, padding):
        scores = jnp.einsum("th,sh->ts", q, k, preferred_element_type=jnp.float32) * scale + padding
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("ts,sh->th", weights, v, preferred_element_type=jnp.float32).astype(v.dtype)

    def one_head(head):
        q, k, v, padding = head
        blocks = jax.lax.map(lambda q: block(q, k, v, padding), q.reshape(T // chunk, chunk, H))
        return blocks.reshape(T, H)

    per_head = [x.transpose(0, 2, 1, 3).reshape(B * N, x.shape[1], H) for x in (q, k, v)]
    out = jax.lax.map(one_head, (*per_head, jnp.repeat(padding, N, axis=0)))
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


@by_group
def attend_on_tpu(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` with the flash kernel, except for short rows, which would be mostly padding (16 times the work at 8)."""
    return (attend_at_once if k.shape[1] < FLASH_TILE else attend_flash)(q, k, v, lengths)


@by_group
def attend_at_once(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` in plain XLA over blocks of queries, all rows and heads at once, which suits wide chips.

    B * T * N * min(T, 512) float32 scores exist at a time, and as many weights: with 16 heads 512 MiB each for a batch
    of 16,384 tokens, for any row length.
    """
    B, T, N, H = q.shape
    chunk = _query_chunk(T)
    padding = jnp.where(jnp.arange(k.shape[1])[None] < lengths[:, None], 0.0, -jnp.inf)[:, None, None]

    def block(q: jax.Array) -> jax.Array:
        scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) / math.sqrt(H)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores + padding, axis=-1).astype(v.dtype), v)

    if chunk == T:
        return block(q)
    blocks = jax.lax.map(block, q.reshape(B, T // chunk, chunk, N, H).swapaxes(0, 1))
    return blocks.swapaxes(0, 1).reshape(B, T, N, H)


def cudnn_takes(heads: jax.Array) -> bool:
    """Whether cuDNN supports attention over such heads (B, T, N, H) on this process's GPUs.

    It does not in 32 bits, on AMD GPUs, and on NVIDIA GPUs before Ampere. cuDNN is always there: JAX does not start on
    CUDA without it.
    """
    H = heads.shape[-1]
    return heads.dtype.itemsize == 2 and H % 8 == 0 and H <= CUDNN_HEAD_DIM and cuda_generation() >= AMPERE


def attend_by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` with cuDNN's flash kernel and its gradient; scores and softmax are float32 on the chip.

    Queries in the padding attend too: given their lengths, the kernel may leave their output unwritten. The keys'
    padding is set to 0, so that whatever gradient the kernel leaves there goes no further.
    """
    real = (jnp.arange(k.shape[1])[None] < lengths[:, None])[:, :, None, None]
    k, v = jnp.where(real, k, 0), jnp.where(real, v, 0)
    lengths = lengths.astype(jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


def attend_flash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` with the TPU's flash kernel: scores stay on the chip. Tokens are padded to a multiple of 128.

    A step processes several short rows, or a block of a long one.
    """
    # Imported here: other platforms do not need Pallas.
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

    B, T, _, H = q.shape
    queries, keys = (-(-x.shape[1] // FLASH_TILE) * FLASH_TILE for x in (q, k))
    heads = [
        jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x, padded in ((q, queries), (k, keys), (v, keys))
    ]
    real = (jnp.arange(keys)[None] < lengths[:, None]).astype(jnp.int32)
    block_q, block_k = (
        FLASH_TILE * _largest_divisor(padded // FLASH_TILE, FLASH_TOKENS // FLASH_TILE) for padded in (queries, keys)
    )
    rows = _largest_divisor(B, FLASH_TOKENS // queries)
    out = flash_attention(
        *heads,
        segment_ids=SegmentIds(jnp.ones((B, queries), jnp.int32), real),
        sm_scale=1 / math.sqrt(H),
        block_sizes=BlockSizes(block_q=block_q, block_k_major=block_k, block_k=block_k, block_b=rows),
    )
    return out.transpose(0, 2, 1, 3)[:, :T]


def _query_chunk(T: int) -> int:
    """Number of queries per block: T up to 512, else the greatest common divisor of T and 512."""
    return T if T <= QUERY_CHUNK else math.gcd(T, QUERY_CHUNK)


def _largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to `limit`, at least 1."""
    return max((divisor for divisor in range(1, limit + 1) if n % divisor == 0), default=1)
