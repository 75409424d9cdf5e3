"""Rotary positions and attention: one meaning, `attend`."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.config import Rope
from stella_jax.sharding import per_device, platform

# Queries scored at a time: T x 512 float32 scores of one head stay within a core's cache up to a few thousand tokens.
QUERY_CHUNK = 512

# What the TPU kernel works in, and the most tokens of a step: its default of 128 is slow, more fill the chip's memory.
FLASH_TILE = 128
FLASH_TOKENS = 1024


def rope_tables(rope: Rope, num_tokens: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the positions 0..T-1, each (T, H/2) float32.

    Every step is rounded to float32, as in the reference: at 8192 tokens a frequency that is more exact by its last bit
    would turn a head by 5e-4.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(rope.theta) ** exponents).astype(np.float32)
    frequencies = np.float32(1.0) / powers / np.float32(rope.divisor)
    angles = np.arange(num_tokens, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(x: jax.Array, cos: jax.Array | np.ndarray, sin: jax.Array | np.ndarray) -> jax.Array:
    """Rotates the halves of each head by its position's angle, in float32.

    Args:
      x: (B, T, ..., H), any float dtype; the result has the same.
      cos, sin: (T, H/2) float32, from `rope_tables`.
    """
    between = (1,) * (x.ndim - 3)
    cos, sin = (jnp.asarray(table).reshape(1, -1, *between, table.shape[-1]) for table in (cos, sin))
    return (rotate_by_matmul if platform() == "tpu" else rotate_by_halves)(x, cos, sin)


def rotate_by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


def rotate_by_matmul(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`rotate` where the matrix unit swaps the halves: exact, as every number is multiplied by 1 once.

    A TPU keeps halves of 32 numbers in 128 lanes each, and cutting and joining them goes through memory three times.
    """
    half = x.shape[-1] // 2
    swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=1)
    exact = jax.lax.Precision.HIGHEST
    swapped = jnp.einsum("...h,hg->...g", x, swap, precision=exact, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the first `lengths[b]` keys of each row, scores and softmax in float32.

    One implementation a platform, which is that of the mesh in context.

    Args:
      q, k, v: (B, T, N, H).
      lengths: (B,) int32, at least 1 each; keys from there on are padding.

    Returns:
      (B, T, N, H) in q's dtype.
    """
    return per_device(attend_on_tpu if platform() == "tpu" else attend_by_head)(q, k, v, lengths)


def attend_by_head(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` in plain XLA.

    It maps over rows and heads, and over blocks of queries, so that one block's scores exist at a time and memory grows
    with T, not with N * T * T.
    """
    B, T, N, H = q.shape
    scale = 1 / math.sqrt(H)
    chunk = T if T <= QUERY_CHUNK else math.gcd(T, QUERY_CHUNK)
    padding = jnp.where(jnp.arange(T)[None, None] < lengths[:, None, None], 0.0, -jnp.inf)  # (B, 1, T)

    def block(q, k, v, padding):
        scores = jnp.einsum("th,sh->ts", q, k, preferred_element_type=jnp.float32) * scale + padding
        return jnp.einsum("ts,sh->th", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    def one_head(head):
        q, k, v, padding = head
        blocks = jax.lax.map(lambda q: block(q, k, v, padding), q.reshape(T // chunk, chunk, H))
        return blocks.reshape(T, H)

    per_head = [x.transpose(0, 2, 1, 3).reshape(B * N, T, H) for x in (q, k, v)]
    out = jax.lax.map(one_head, (*per_head, jnp.repeat(padding, N, axis=0)))
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def attend_on_tpu(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` by the flash kernel, but not where most of its tile would be padding: 16 times the work at 8 tokens."""
    return (attend_at_once if q.shape[1] < FLASH_TILE else attend_flash)(q, k, v, lengths)


def attend_at_once(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` in plain XLA, all rows and heads together: B * N * T * T scores in memory."""
    T, H = q.shape[1], q.shape[-1]
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) / math.sqrt(H)
    padding = jnp.where(jnp.arange(T)[None] < lengths[:, None], 0.0, -jnp.inf)[:, None, None]
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores + padding, axis=-1).astype(v.dtype), v)


def attend_flash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`attend` by the TPU's flash kernel: scores stay on the chip. Tokens are padded to a multiple of 128.

    A step takes several short rows, or a block of a long one.
    """
    # Imported here: other platforms need not know of Pallas.
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

    B, T, _, H = q.shape
    padded = -(-T // FLASH_TILE) * FLASH_TILE
    heads = [jnp.pad(x, ((0, 0), (0, padded - T), (0, 0), (0, 0))).transpose(0, 2, 1, 3) for x in (q, k, v)]
    real = (jnp.arange(padded)[None] < lengths[:, None]).astype(jnp.int32)
    block = FLASH_TILE * _largest_divisor(padded // FLASH_TILE, FLASH_TOKENS // FLASH_TILE)
    rows = _largest_divisor(B, FLASH_TOKENS // padded)
    out = flash_attention(
        *heads,
        segment_ids=SegmentIds(jnp.ones_like(real), real),
        sm_scale=1 / math.sqrt(H),
        block_sizes=BlockSizes(block_q=block, block_k_major=block, block_k=block, block_b=rows),
    )
    return out.transpose(0, 2, 1, 3)[:, :T]


def _largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to `limit`; 1 where there is no other."""
    return max((divisor for divisor in range(1, limit + 1) if n % divisor == 0), default=1)
