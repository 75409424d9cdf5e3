"""Optimizers of recipes: AdamW against torch and transformers, every other by its optax name, patterns, bad input."""

import doctest
import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stella_jax import StellaError
from stella_jax.models.new import NEW
from train import optimizers
from train.optimizers import decays, from_recipe, learning_rate_multipliers, schedule
from train.param_groups import matrix_axes
from train.sections import OptimizerSection

SHAPES = {
    "encoder/embeddings/word/embedding": (7, 4),
    "encoder/embeddings/norm/scale": (4,),
    "encoder/layers/attention/qkv/kernel": (3, 4, 3, 2, 2),
    "encoder/layers/attention/qkv/bias": (3, 3, 2, 2),
    "encoder/layers/attention/out/kernel": (3, 2, 2, 4),
    "encoder/layers/mlp/up_gate/kernel": (3, 4, 2, 5),
    "encoder/layers/mlp/down/kernel": (3, 5, 4),
    "encoder/layers/mlp/down/bias": (3, 4),
    "head/kernel": (4, 2),
    "head/bias": (2,),
}
LAYERS = 3
FIXED: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}

Params = dict[str, jax.Array]


def numbers(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def updated(section: OptimizerSection, steps: int, scale: float = 1.0, names: Collection[str] = SHAPES) -> Params:
    """Parameters after some steps with random gradients."""
    params = {name: value for name, value in numbers(0).items() if name in names}
    optimizer = from_recipe(section, params, steps, NEW)
    transformation = optax.with_extra_args_support(optimizer.transformation)
    state = transformation.init({name: params[name] for name in optimizer.trainable})

    @jax.jit
    def step(params: Params, state: Any, gradient: Params) -> Any:
        trained = {name: params[name] for name in optimizer.trainable}
        gradient = {name: jnp.where(optimizer.trainable[name], scale * gradient[name], 0) for name in trained}
        updates: Any
        updates, state = transformation.update(gradient, state, trained, value=jnp.float32(1))
        masked = {name: jnp.where(optimizer.trainable[name], updates[name], 0) for name in trained}
        return params | {name: trained[name] + masked[name] for name in trained}, state

    for i in range(steps):
        params, state = step(params, state, numbers(i + 1))
    return params


def optimizer_of(**keys: Any) -> Any:
    return from_recipe(OptimizerSection(**keys), numbers(0), 10, NEW)


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return transformers


def their_learning_rates(transformers, name: str, peak: float, steps: int, ratio: float) -> list[float]:
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    name = "constant_with_warmup" if name == "constant" else name
    warmup = int(np.ceil(ratio * steps))
    scheduler = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.torch
@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "ratio"), [(18, 0.1), (1000, 0.1), (7, 0.0), (3, 1.0), (1, 0.1)])
def test_schedules_are_those_of_transformers(transformers, name, steps, ratio) -> None:
    found = jax.vmap(schedule(name, 2e-5, steps, ratio))(jnp.arange(steps))
    expected = their_learning_rates(transformers, name, 2e-5, steps, ratio)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7 * 2e-5)


def torch_updated(section: OptimizerSection, learning_rates: list[float], scale: float) -> dict[str, np.ndarray]:
    import torch

    params = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in numbers(0).items()}
    groups = [
        {"params": [p for n, p in params.items() if decays(n) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, section.weight_decay), (False, 0.0))
    ]
    peer = torch.optim.AdamW(groups, lr=1.0)
    for step, rate in enumerate(learning_rates):
        for name, value in numbers(step + 1).items():
            params[name].grad = scale * torch.tensor(np.asarray(value))
        torch.nn.utils.clip_grad_norm_(params.values(), section.max_grad_norm)
        for group in peer.param_groups:
            group["lr"] = rate
        peer.step()
    return {name: value.detach().numpy() for name, value in params.items()}


@pytest.mark.torch
@pytest.mark.parametrize(("name", "scale"), [("cosine", 1.0), ("linear", 1e-3)], ids=["clipped", "not clipped"])
def test_thirty_steps_of_adamw_equal_torch_s(transformers, name, scale) -> None:
    """Within 1e-5 of a parameter's largest value; the largest difference seen is 4e-6."""
    section = OptimizerSection(learning_rate=0.05, weight_decay=0.1, schedule=name)
    found = updated(section, 30, scale)
    expected = torch_updated(section, their_learning_rates(transformers, name, 0.05, 30, 0.1), scale)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)


def test_the_first_update_of_adamw_is_the_learning_rate_itself() -> None:
    """m / (1 - b1) over the root of v / (1 - b2) is the gradient's sign, to the last bits."""
    after = updated(OptimizerSection(learning_rate=0.5, args={"eps": 0.0}, **FIXED), 1)
    for name, gradient in numbers(1).items():
        np.testing.assert_allclose(after[name] - numbers(0)[name], -0.5 * np.sign(gradient), rtol=1e-6)


@pytest.mark.parametrize(
    "args", [{}, {"nesterov": True}, {"eps_root": 0.1}, {"b1": 0.0}, {"mu_dtype": "bfloat16"}], ids=str
)
def test_adamw_has_the_arguments_of_optax_s(args) -> None:
    """optax's bias correction is off by 1e-5, and it rounds bfloat16 moments after the update, not before."""
    ours, theirs = (make(1e-2, weight_decay=0.1, **args) for make in (optimizers.adamw, optax.adamw))
    assert str(signature(optimizers.adamw).parameters.keys()) == str(signature(optax.adamw).parameters.keys())
    params, atol = numbers(0), 1e-4 if "mu_dtype" in args else 3e-7
    states = [transformation.init(params) for transformation in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for seed in range(1, 4):
        steps = [each.update(numbers(seed), state, params) for each, state in zip((ours, theirs), states, strict=True)]
        states = [state for _, state in steps]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), steps[0][0], steps[1][0])


def test_max_grad_norm_0_clips_nothing() -> None:
    """Of sgd, whose update is the gradient."""
    sgd: dict[str, Any] = {"name": "sgd", "learning_rate": 1.0} | FIXED
    clipped, whole = (updated(OptimizerSection(max_grad_norm=norm, **sgd), 1) for norm in (1.0, 0.0))
    length = float(optax.tree.norm(numbers(1)))
    for name, before in numbers(0).items():
        np.testing.assert_allclose(before - whole[name], numbers(1)[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose((before - clipped[name]) * length, numbers(1)[name], rtol=1e-4, atol=1e-5)


DECAYING = ["adamw", "lion", "adan", "lamb", "adafactor", "muon"]


@pytest.mark.parametrize("name", DECAYING)
def test_biases_and_norms_do_not_decay(name) -> None:
    """Without a gradient, decay alone moves a parameter."""
    decay: dict[str, Any] = {"args": {"weight_decay_rate": 0.1}} if name == "adafactor" else {"weight_decay": 0.1}
    after = updated(OptimizerSection(name=name, learning_rate=0.1, **decay, **FIXED), 1, scale=0.0)
    moved = {key for key, before in numbers(0).items() if (after[key] != before).any()}
    kernels = {key for key in SHAPES if key.endswith(("kernel", "embedding"))}
    # muon's Adam, which takes heads and embeddings, has a decay of its own, args.adam_weight_decay
    assert moved == ({key for key in kernels if "layers" in key} if name == "muon" else kernels)


def test_decay_is_by_name(refused) -> None:
    assert {name for name in SHAPES if decays(name)} == {name for name in SHAPES if name.endswith(("kernel", "ding"))}
    with refused("head/gain"):
        decays("head/gain")


NAMED = ["adamw", "lion", "adafactor", "sgd", "muon", "lamb", "adan", "rmsprop", "radam", "yogi", "sm3", "momo"]


TWO = "encoder/layers/mlp/down/kernel", "head/bias"


def test_any_two_optimizers_give_different_parameters() -> None:
    kernel, _ = TWO
    after = {name: updated(OptimizerSection(name=name, learning_rate=0.1, **FIXED), 2, names=TWO) for name in NAMED}
    for first, second in combinations(NAMED, 2):
        assert np.abs(after[first][kernel] - after[second][kernel]).max() > 1e-4, (first, second)
    for name, params in after.items():
        assert all(np.isfinite(leaf).all() for leaf in params.values()), name


@pytest.mark.filterwarnings("ignore")  # what optax says about the ones it will remove
@pytest.mark.parametrize("keys", [{}, FIXED], ids=["cosine", "fixed"])
def test_every_optimizer_runs_or_is_refused(keys) -> None:
    """On shapes, which `from_recipe` tries; optax's names differ from version to version."""
    params, refused = {name: numbers(0)[name] for name in TWO}, {}
    for name in optimizers.names():
        try:
            from_recipe(OptimizerSection(name=name, **keys), params, 10, NEW)
        except StellaError as error:
            refused[name] = str(error)
    assert set(NAMED) <= set(optimizers.names())
    assert "adamw" not in refused and len(refused) <= (0 if keys else 4)
    assert all(sentence.startswith("optimizer.schedule: ") for sentence in refused.values())
    assert not any(name.startswith("scale_by_") for name in optimizers.names())


def test_muon_takes_each_layers_kernel_as_a_matrix_and_all_else_by_its_adam() -> None:
    section = OptimizerSection(name="muon", learning_rate=0.1, max_grad_norm=0.0, **FIXED)
    after, muon, adam = updated(section, 1), optax.contrib.muon(0.1), optax.adam(0.1, nesterov=True)

    @partial(jax.jit, static_argnums=0)
    def alone(transformation: Any, param: jax.Array, gradient: jax.Array) -> jax.Array:
        updates, _ = transformation.update({"x": gradient}, transformation.init({"x": param}), {"x": param})
        return param + updates["x"]

    # name -> each layer's matrices, (inputs, outputs) each
    matrices = {
        "attention/qkv": lambda x: [x[:, i].reshape(4, 4) for i in range(3)],
        "attention/out": lambda x: [x.reshape(4, 4)],
        "mlp/up_gate": lambda x: [x[:, 0], x[:, 1]],
        "mlp/down": lambda x: [x],
    }
    for name, before in numbers(0).items():
        gradient = numbers(1)[name]
        split = next((split for key, split in matrices.items() if name.endswith(f"{key}/kernel")), None)
        if split is None:
            np.testing.assert_allclose(after[name], alone(adam, before, gradient), rtol=1e-5, atol=1e-6, err_msg=name)
            continue
        for layer in range(LAYERS):
            each = zip(*(split(x[layer]) for x in (after[name], before, gradient)), strict=True)
            for found, param, slope in each:
                np.testing.assert_allclose(found, alone(muon, param, slope), rtol=1e-5, atol=1e-5, err_msg=name)


def test_muon_s_axes_are_those_of_the_model_s_own_architecture() -> None:
    """Another architecture may store a parameter of the same name the other way round."""
    name = "encoder/layers/mlp/down/kernel"
    turned = [replace(each, flax_axes="D F") if f"encoder/{each.flax}" == name else each for each in NEW.weights]
    other = replace(NEW, weights=tuple(turned))
    assert matrix_axes(name, NEW) == optax.contrib.MuonDimensionNumbers((1,), (2,))
    assert matrix_axes(name, other) == optax.contrib.MuonDimensionNumbers((2,), (1,))
    params = {name: jnp.asarray(np.random.default_rng(0).standard_normal((LAYERS, 5, 4)), jnp.float32)}
    section = OptimizerSection(name="muon", learning_rate=0.1, **FIXED)
    updates: list[Any] = [from_recipe(section, params, 1, each).transformation for each in (NEW, other)]
    found = [each.update(params, each.init(params), params)[0][name] for each in updates]
    assert not np.allclose(*found)  # the scale depends on which axis is the output


def test_muon_trains_a_head_alone() -> None:
    section = OptimizerSection(name="muon", learning_rate=0.1, train_only=("head/*",), **FIXED)
    after = updated(section, 1)
    assert (after["head/kernel"] != numbers(0)["head/kernel"]).all()


def test_arguments_reach_optax() -> None:
    first, second = (
        updated(OptimizerSection(name="sgd", args=args, learning_rate=0.1, **FIXED), 2)
        for args in ({}, {"momentum": 0.9})
    )
    assert (first["head/kernel"] != second["head/kernel"]).any()
    half = from_recipe(OptimizerSection(args={"mu_dtype": "bfloat16"}), numbers(0), 10, NEW)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(half.transformation.init(numbers(0)))}
    assert jnp.dtype("bfloat16") in dtypes


def test_a_number_replaces_a_constant_schedule(refused) -> None:
    with refused("optimizer.schedule"):
        optimizer_of(name="sm3")
    with refused("optimizer.schedule"):
        optimizer_of(name="sm3", schedule="constant")
    updated(OptimizerSection(name="sm3", **FIXED), 1)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"name": "adamW"}, ["optimizer.name", "'adamW'", " adamw, "]),
        ({"name": "lino"}, ["'lino'", " lion, "]),
        ({"name": "x" * 5000}, ["optimizer.name"]),
        ({"name": "chain"}, ["optimizer.name", "'chain'"]),
        ({"name": "scale_by_adam"}, ["optimizer.name"]),
        ({"name": "lbfgs"}, ["optimizer.name", "lbfgs"]),
        ({"name": "schedule_free_adamw"}, ["optimizer.name", "schedule_free_adamw"]),
        ({"name": "sgd", "weight_decay": 0.1}, ["optimizer.weight_decay", "sgd"]),
        ({"name": "novograd", "weight_decay": 0.1}, ["optimizer.weight_decay", "novograd"]),
        ({"args": {"beta": 0.9}}, ["optimizer.args", "'beta'", "b1, b2"]),
        ({"args": {"mask": True}}, ["optimizer.args", "'mask'"]),
        ({"args": {"learning_rate": 1.0}}, ["optimizer.args.learning_rate", "optimizer.learning_rate"]),
        ({"args": {"weight_decay": 1.0}}, ["optimizer.args.weight_decay", "optimizer.weight_decay"]),
        ({"args": {"b1": "x"}}, ["optimizer.args.b1 = 'x'"]),
        ({"args": {"b1": [1]}}, ["optimizer.args.b1 = [1]"]),
        ({"args": {"b1": True}}, ["optimizer.args.b1 = True"]),
        ({"args": {"eps": {"a": 1}}}, ["optimizer.args.eps"]),
        ({"args": {"nesterov": "false"}}, ["optimizer.args.nesterov = 'false'"]),
        ({"args": {"mu_dtype": "float33"}}, ["optimizer.args", "adamw", "float33"]),
        ({"name": "sgd", "args": {"momentum": "x"}}, ["optimizer.args", "sgd"]),
        ({"name": "muon", "args": {"ns_coeffs": [1.0, 2.0]}}, ["optimizer.args", "muon"]),
        ({"name": "muon", "args": {"preconditioning": "x"}}, ["optimizer.args", "muon"]),
    ],
)
def test_invalid_optimizer_arguments(keys, names, refused) -> None:
    """The lists and sentences of optax, which change with its version, are not compared."""
    with refused(*names, mask="(?<=choose ).*|(?<=it takes ).*|(?<=rejects them ).*(?=; )"):
        optimizer_of(**keys)


def test_frozen_parameters_and_layers_keep_their_bits() -> None:
    freeze = ("encoder/embeddings/*", "encoder/layers/[02]/*")
    after = updated(OptimizerSection(learning_rate=0.1, weight_decay=0.1, freeze=freeze, **FIXED), 3)
    for name, before in numbers(0).items():
        same = np.asarray(after[name] == before)
        if name.startswith("encoder/layers/"):
            assert same[[0, 2]].all() and not same[1].any()
        else:
            assert same.all() == name.startswith("encoder/embeddings/")


def test_trainable_is_a_mask_where_layers_differ() -> None:
    section = OptimizerSection(train_only=("head/*", "encoder/layers/1/mlp/down/kernel"))
    trainable = from_recipe(section, numbers(0), 10, NEW).trainable
    assert trainable.keys() == {"head/kernel", "head/bias", "encoder/layers/mlp/down/kernel"}
    assert trainable["head/kernel"] is True
    assert trainable["encoder/layers/mlp/down/kernel"].tolist() == [[[False]], [[True]], [[False]]]


RATES = {"encoder/*": 1e-5, "encoder/layers/2/*": 4e-5}


def test_learning_rates_by_pattern() -> None:
    section = OptimizerSection(learning_rate=2e-5, learning_rates=RATES, freeze=("*bias",))
    found = learning_rate_multipliers(section, numbers(0))
    assert found.keys() == {name for name in SHAPES if not name.endswith("bias")}
    assert found["head/kernel"] == 1
    assert found["encoder/embeddings/word/embedding"] == np.float32(0.5)
    assert found["encoder/layers/mlp/down/kernel"].tolist() == [[[0.5]], [[0.5]], [[2.0]]]


def test_a_learning_rate_by_pattern_equals_a_run_with_it_everywhere() -> None:
    """Decay included, which AdamW multiplies by the learning rate."""
    keys: dict[str, Any] = {"weight_decay": 0.1} | FIXED
    mixed = updated(OptimizerSection(learning_rate=0.2, learning_rates={"encoder/layers/1/*": 0.05}, **keys), 3)
    fast, slow = (updated(OptimizerSection(learning_rate=rate, **keys), 3) for rate in (0.2, 0.05))
    for name in SHAPES:
        expected = np.array(fast[name])
        if name.startswith("encoder/layers/"):
            expected[1] = slow[name][1]
        np.testing.assert_allclose(mixed[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"freeze": ("*",)}, ["freeze = ['*']"]),
        ({"train_only": ("head/*",), "freeze": ("head/*",)}, ["train_only = ['head/*']", "freeze = ['head/*']"]),
        ({"freeze": ("decoder/*",)}, ["optimizer.freeze", "'decoder/*'", "encoder/emb"]),
        ({"learning_rates": {"encoder/layers/3/*": 1.0}}, ["optimizer.learning_rates", "encoder/layers/3/*"]),
    ],
)
def test_patterns_that_match_nothing(keys, names, refused) -> None:
    with refused(*names):
        optimizer_of(**keys)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(optimizers) == (0, 9)
