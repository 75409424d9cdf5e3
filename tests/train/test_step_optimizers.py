"""The training step with any optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import nightly
from steps import HEAD, Run, assert_split, batch, made, start

OPTIMIZERS: dict[str, Any] = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "adamw in bfloat16": optax.adamw(1e-2, mu_dtype=jnp.bfloat16),
    "lion": optax.lion(1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=16),
    "sgd": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "muon": optax.contrib.muon(1e-2),
    "multi_transform": optax.multi_transform(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()},
        lambda params: {name: "trained" if name.endswith("kernel") else "frozen" for name in params},
    ),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2),
    "add_noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(1e-2)),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "reduce_on_plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)),
}


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-3, atol=1e-6)


QUICK = ("adamw", "MultiSteps", "add_noise")


@pytest.mark.parametrize("name", [*QUICK, *nightly(*(name for name in OPTIMIZERS if name not in QUICK))])
def test_a_step_with_any_optimizer(name: str) -> None:
    """Two steps, beside what the optimizer makes of the same gradients by itself."""
    run = Run(optimizer=OPTIMIZERS[name], trainable=HEAD)
    gradients = Run(optimizer=optax.chain(optax.trace(0.0), optax.set_to_zero()), trainable=HEAD)
    optimizer, state = optax.with_extra_args_support(run.optimizer), start(run)
    params = {name: made(run)[0].params()[name] for name in HEAD}
    expected = jax.jit(optimizer.init)(params)

    @jax.jit
    def update(gradient: Any, state: Any, params: Any, loss: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for number in range(2):
        here = start(gradients)._replace(params=jax.tree.map(jnp.copy, state.params))
        here, metrics = made(gradients)[1](here, batch(number))
        params, expected = update(here.opt_state[0].trace, expected, params, metrics["loss"])
        state, _ = made(run)[1](state, batch(number))
        assert_close({name: state.params[name] for name in HEAD}, params)
        assert_close(state.opt_state, expected)


# Moments of the parameters' shapes, of others, of one label's, those in a state with accumulated gradients, a key.
STATES = ("adamw", "adafactor", "multi_transform", "MultiSteps", "add_noise")


@pytest.mark.parametrize("name", [*STATES, *nightly(*(name for name in OPTIMIZERS if name not in STATES))])
def test_fsdp_splits_the_state_of_any_optimizer(name: str) -> None:
    run = Run(mesh="data=8", fsdp=True, optimizer=OPTIMIZERS[name])
    assert_split(run, start(run))
