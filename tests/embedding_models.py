"""The model, the batch and the transforms of the tests of `EmbeddingModel`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stella_jax import EmbeddingModel

IDS: Any = np.random.default_rng(0).integers(5, 2048, (8, 12)).astype(np.int32)
LENGTHS: Any = np.array([12, 7, 3, 1, 12, 5, 9, 2], np.int32)
DIRECTION = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
NAMES = [
    "encoder/embeddings/norm/bias",
    "encoder/embeddings/norm/scale",
    "encoder/embeddings/token_type/embedding",
    "encoder/embeddings/word/embedding",
    "encoder/layers/attention/out/bias",
    "encoder/layers/attention/out/kernel",
    "encoder/layers/attention/qkv/bias",
    "encoder/layers/attention/qkv/kernel",
    "encoder/layers/attention_norm/bias",
    "encoder/layers/attention_norm/scale",
    "encoder/layers/mlp/down/bias",
    "encoder/layers/mlp/down/kernel",
    "encoder/layers/mlp/up_gate/kernel",
    "encoder/layers/mlp_norm/bias",
    "encoder/layers/mlp_norm/scale",
    "head/bias",
    "head/kernel",
]

Function = Callable[[Any, Any], jax.Array]  # (ids, lengths) -> embeddings


def same(found: Any, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def by_row(function: Function) -> Function:
    return lambda ids, lengths: function(ids[None], lengths[None])[0]


def scanned(function: Function, ids: Any, lengths: Any) -> jax.Array:
    """Batches of two rows as the inputs of a scan."""
    batches = jnp.reshape(ids, (4, 2, 12)), jnp.reshape(lengths, (4, 2))
    return jnp.concatenate(jax.lax.scan(lambda carry, batch: (carry, function(*batch)), None, batches)[1])


CALLS: dict[str, Callable[[Function], Function]] = {
    "jit": jax.jit,
    "vmap": lambda f: jax.vmap(by_row(f)),
    "scan": lambda f: partial(scanned, f),
    "checkpoint": jax.checkpoint,
    "jit of checkpoint of scan": lambda f: jax.jit(jax.checkpoint(partial(scanned, f))),
}


def loss(model: Function) -> jax.Array:
    return jnp.sum(model(IDS, LENGTHS) * DIRECTION)


def with_params(model: EmbeddingModel) -> Callable[[dict[str, jax.Array]], jax.Array]:
    return lambda params: loss(model.with_params(params))


def named(gradient: Any) -> dict[str, np.ndarray]:
    if isinstance(gradient, nnx.State):
        gradient = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradient)}
    params = gradient.params() if isinstance(gradient, EmbeddingModel) else gradient
    return {name: np.asarray(leaf) for name, leaf in params.items()}
