"""AdamW, schedules and patterns, against torch and transformers, and by hand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.optimizer import Optimizer, adamw, decays, global_norm, learning_rates, rates, zero_moments

from stella_jax import StellaError

SHAPES = {
    "encoder/embeddings/word/embedding": (5, 4),
    "encoder/embeddings/norm/scale": (4,),
    "encoder/layers/mlp/down/kernel": (3, 4, 4),
    "encoder/layers/mlp/down/bias": (3, 4),
    "head/kernel": (4, 2),
    "head/bias": (2,),
}


def numbers(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def update(optimizer: Optimizer, steps: int, scale: float = 1.0) -> list[dict[str, jax.Array]]:
    """The parameters before and after each of some steps with random gradients."""
    params, schedule = numbers(0), learning_rates(optimizer, steps)
    relative = rates(optimizer, params)
    trained = {name: params[name] for name in relative}
    moments, log = zero_moments(trained), [params]
    for step in range(steps):
        gradient = {name: scale * value for name, value in numbers(step + 1).items() if name in relative}
        trained, moments, _ = adamw(
            optimizer, relative, trained, gradient, moments, jnp.int32(step), jnp.asarray(schedule[step])
        )
        log.append(params | trained)
    return log


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return transformers


@pytest.mark.torch
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "ratio"), [(18, 0.1), (1000, 0.1), (7, 0.0), (3, 1.0), (1, 0.1)])
def test_learning_rates_are_those_of_transformers_to_float32(transformers, schedule, steps, ratio) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2e-5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    warmup = int(np.ceil(ratio * steps))
    scheduler = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = learning_rates(Optimizer(2e-5, schedule, ratio), steps)
    assert np.array_equal(found, np.array(expected, np.float32))


def torch_update(optimizer: Optimizer, steps: int, scale: float) -> dict[str, np.ndarray]:
    import torch

    params = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in numbers(0).items()}
    groups = [
        {"params": [p for n, p in params.items() if decays(n) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, optimizer.weight_decay), (False, 0.0))
    ]
    peer = torch.optim.AdamW(groups, lr=1.0, eps=optimizer.epsilon)
    for step, rate in enumerate(learning_rates(optimizer, steps)):
        for name, value in numbers(step + 1).items():
            params[name].grad = scale * torch.tensor(np.asarray(value))
        torch.nn.utils.clip_grad_norm_(params.values(), optimizer.max_grad_norm)
        for group in peer.param_groups:
            group["lr"] = float(rate)
        peer.step()
    return {name: value.detach().numpy() for name, value in params.items()}


@pytest.mark.torch
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["clipped", "not clipped"])
def test_twenty_updates_are_those_of_torch(scale) -> None:
    optimizer = Optimizer(learning_rate=0.05, weight_decay=0.1)
    found = update(optimizer, 20, scale)[-1]
    for name, expected in torch_update(optimizer, 20, scale).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=2e-6, err_msg=name)


def test_the_first_update_is_the_rate_itself() -> None:
    """m / (1 - b1) over the root of v / (1 - b2) is the gradient's sign, to the last bits."""
    before, after = update(Optimizer(learning_rate=0.5, warmup_ratio=0.0, epsilon=0.0), 1)
    for name, gradient in numbers(1).items():
        np.testing.assert_allclose(after[name] - before[name], -0.5 * np.sign(gradient), rtol=1e-5)


def test_decay_is_by_name() -> None:
    assert {name for name in SHAPES if decays(name)} == {name for name in SHAPES if name.endswith(("kernel", "ding"))}
    with pytest.raises(StellaError, match="parameter head/gain is of no known kind"):
        decays("head/gain")


def test_frozen_parameters_and_layers_keep_their_bits() -> None:
    freeze = ("encoder/embeddings/*", "encoder/layers/[02]/*")
    *_, after = update(Optimizer(learning_rate=0.1, weight_decay=0.1, freeze=freeze, warmup_ratio=0), 3)
    for name, before in numbers(0).items():
        same = np.asarray(after[name] == before)
        if name.startswith("encoder/layers/"):
            assert same[[0, 2]].all() and not same[1].any()
        else:
            assert same.all() == name.startswith("encoder/embeddings/")


def test_a_frozen_layer_is_not_in_the_norm() -> None:
    optimizer = Optimizer(train_only=("encoder/layers/1/mlp/down/kernel",))
    params, gradient = numbers(0), numbers(1)
    relative = rates(optimizer, params)
    trained = {name: params[name] for name in relative}
    *_, norms = adamw(
        optimizer,
        relative,
        trained,
        {name: gradient[name] for name in relative},
        zero_moments(trained),
        jnp.int32(0),
        jnp.float32(1),
    )
    assert list(relative) == ["encoder/layers/mlp/down/kernel"]
    np.testing.assert_allclose(norms.gradient, np.linalg.norm(gradient["encoder/layers/mlp/down/kernel"][1]), rtol=1e-6)


def test_rates_of_their_own() -> None:
    found = rates(
        Optimizer(
            learning_rate=2e-5, learning_rates=(("encoder/*", 1e-5), ("encoder/layers/2/*", 4e-5)), freeze=("*bias",)
        ),
        numbers(0),
    )
    assert found.keys() == SHAPES.keys() - {"head/bias", "encoder/layers/mlp/down/bias"}
    assert found["head/kernel"] == 1
    assert found["encoder/embeddings/word/embedding"] == np.float32(0.5)
    assert found["encoder/layers/mlp/down/kernel"].tolist() == [[[0.5]], [[0.5]], [[2.0]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ("*",)}, "nothing is left to train"),
        ({"train_only": ("head/*",), "freeze": ("head/*",)}, "nothing is left to train"),
        (
            {"freeze": ("decoder/*",)},
            r"optimizer\.freeze: 'decoder/\*' fits no parameter; names are such as encoder/emb",
        ),
        ({"learning_rates": (("encoder/layers/3/*", 1.0),)}, r"optimizer\.learning_rates: .* fits no parameter"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(settings, message) -> None:
    with pytest.raises(StellaError, match=message):
        rates(Optimizer(**settings), numbers(0))


def test_a_schedule_that_is_not_there_is_refused() -> None:
    with pytest.raises(StellaError, match=r"optimizer\.schedule 'step' is unknown; cosine, linear, constant are"):
        learning_rates(Optimizer(schedule="step"), 3)  # type: ignore[arg-type]


def test_the_norm_is_that_of_all_numbers() -> None:
    assert global_norm([jnp.array([3.0]), jnp.array([[4.0]])]) == 5
