"""Traits of losses found by trying them: decomposable, skips padding, and errors."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.loss_checks import LossTraits
from train.losses import (
    DISTANCES,
    cosent,
    gist_embed,
    kl_distillation,
    margin_mse,
    matryoshka,
    multiple_negatives_ranking,
    stella_distillation,
    triplet,
)
from train.losses.ranking import DIRECTIONS

DIM = 16
UNKNOWN: dict[str, Any] = {"factor": 2}
SCORES = {"score": np.linspace(0, 1, 5, dtype=np.float32)}


def traits(loss: Any, columns: Mapping[str, np.ndarray] = SCORES, texts: int = 3) -> tuple[bool, bool]:
    found = LossTraits(loss, "my_file:my_loss", texts, DIM, columns)
    return found.decomposable, found.skips_padding


def similarities(embeddings) -> jax.Array:
    anchor, positive, *_ = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in embeddings)
    return jnp.einsum("be,ce->bc", anchor, positive, precision="highest")


def in_batch(embeddings, columns, scale=20.0):
    """A ranking loss as it is first written: filled-up rows are candidates, too."""
    scores = scale * similarities(embeddings)
    return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)


def in_batch_skipping(embeddings, columns):
    scores = 20 * similarities(embeddings) + jnp.where(columns["weights"] > 0, 0, -1e9)[None]
    return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)


def hardest_negative(embeddings, columns):
    """A hinge on the nearest other positive."""
    scores = similarities(embeddings)
    others = scores - 2 * jnp.eye(len(scores))
    return jax.nn.relu(others.max(axis=1) - jnp.diagonal(scores) + 0.2)


def centered(embeddings, columns):
    """Per-example, minus the mean of the batch."""
    distances = DISTANCES["euclidean"](embeddings[0], embeddings[1])
    return distances - distances.mean()


def already_averaged(embeddings, columns):
    losses = triplet(embeddings)
    return jnp.full_like(losses, losses.mean())


def scored(embeddings, columns):
    return (jnp.diagonal(similarities(embeddings)) - columns["score"]) ** 2


@pytest.mark.parametrize(
    ("loss", "decomposable", "skips_padding"),
    [
        (triplet, True, True),
        (partial(triplet, distance="cosine", margin=1e-3), True, True),
        (matryoshka(triplet, (16, 4)), True, True),
        (multiple_negatives_ranking, False, True),
        (partial(multiple_negatives_ranking, scale=1000.0), False, True),
        (in_batch, False, False),
        (partial(in_batch, scale=0.05), False, False),
        (in_batch_skipping, False, True),
        (hardest_negative, False, False),
        (centered, False, False),
        (already_averaged, False, False),
        (partial(kl_distillation, similarity="cosine"), True, True),
        (scored, True, True),
        (lambda embeddings, columns: 0 * embeddings[0][:, 0], True, True),
        (lambda embeddings, columns: (embeddings[0] * embeddings[1]).sum(1).astype(jnp.bfloat16), True, True),
        pytest.param(partial(triplet, margin=0.0), True, True, marks=pytest.mark.nightly),
        pytest.param(partial(triplet, distance="manhattan", margin=1000.0), True, True, marks=pytest.mark.nightly),
        pytest.param(
            partial(multiple_negatives_ranking, directions=DIRECTIONS), False, True, marks=pytest.mark.nightly
        ),
        pytest.param(matryoshka(multiple_negatives_ranking, (16, 4)), False, True, marks=pytest.mark.nightly),
        pytest.param(matryoshka(in_batch, (8,)), False, False, marks=pytest.mark.nightly),
        pytest.param(margin_mse, True, True, marks=pytest.mark.nightly),
        pytest.param(partial(in_batch, scale=1000.0), False, False, marks=pytest.mark.nightly),
    ],
)
def test_whether_a_loss_is_decomposable_and_skips_padding(loss, decomposable, skips_padding):
    several = {"score": np.ones((5, 2), np.float32)} if getattr(loss, "func", loss) is kl_distillation else SCORES
    assert traits(loss, several) == (decomposable, skips_padding)


def test_a_hinge_that_is_flat_at_one_scale():
    """Beyond 10 apart it is flat, so embeddings of length 1 would show nothing."""

    def far(embeddings, columns):
        distances = jnp.linalg.norm(embeddings[0][:, None] - embeddings[1][None], axis=-1)
        return jax.nn.relu(distances - 10).sum(axis=1)

    assert traits(far, texts=2) == (False, False)


def test_a_column_is_split_with_its_rows():
    """Its values are those of a real batch, as a loss may use them as indices."""
    labels = np.array([0, 3], np.float32)

    def by_label(embeddings, columns):
        return embeddings[0][jnp.arange(len(embeddings[0])), columns["label"].astype(int)]

    assert traits(by_label, {"label": labels}) == (True, True)


@pytest.mark.parametrize(
    ("loss", "columns", "texts"),
    [
        (cosent, {"score": np.zeros(1, np.float32)}, 2),
        (gist_embed, {"guide": np.ones((1, 3, 5), np.float32)}, 3),
        (stella_distillation, {"teacher": np.ones((1, DIM), np.float32)}, 1),
    ],
)
def test_equal_scores_do_not_hide_that_rows_are_compared(loss, columns, texts):
    assert traits(loss, columns, texts) == (False, True)


def test_a_column_of_positive_numbers_stays_positive():
    def logarithm(embeddings, columns):
        return jnp.log(columns["score"]) * embeddings[0][:, 0]

    assert traits(logarithm, {"score": np.array([1, 0.01], np.float32)}) == (True, True)


def root(embeddings, columns):
    """Its gradient at distance 0, which each row has from itself, is not finite."""
    distances = jnp.sqrt(((embeddings[0][:, None] - embeddings[0][None]) ** 2).sum(-1))
    return distances.mean(axis=1)


def stubborn(embeddings, columns):
    raise RuntimeError("first line\nsecond line" + "x" * 5000)


def on_the_host(embeddings, columns):
    return np.linalg.norm(np.asarray(embeddings[0]), axis=1)


def without_a_gradient(embeddings, columns):
    shape = jax.ShapeDtypeStruct((len(embeddings[0]),), jnp.float32)
    return jax.pure_callback(lambda x: np.asarray(x)[:, 0], shape, embeddings[0])


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (lambda e, c: triplet(e, c).mean(), ["float32 of shape ()"]),
        (lambda e, c: similarities(e), ["float32 of shape (8, 8)", "(8,)"]),
        (lambda e, c: triplet(e, c)[:-1], ["shape (7,)"]),
        (lambda e, c: jnp.arange(len(e[0])), ["int32"]),
        (lambda e, c: triplet(e, c) > 0, ["bool"]),
        (lambda e, c: triplet(e, c) * 1j, ["complex64"]),
        (lambda e, c: 1.5, ["float"]),
        (lambda e, c: list(triplet(e, c)), ["list"]),
        (lambda e, c: None, ["None"]),
        (lambda e, c: jnp.log(-jnp.abs(e[0][:, 0])), ["loss 'my_file:my_loss'"]),
        (lambda e, c: triplet(e, c) / 0, ["loss 'my_file:my_loss'"]),
        (root, ["gradient of loss"]),
        (stubborn, ["RuntimeError: first line"]),
        (on_the_host, ["TracerArrayConversionError"]),
        (without_a_gradient, ["loss 'my_file:my_loss'"]),
        (lambda e, c: triplet(e, c) * c["scores"], ["KeyError", "scores"]),
        (lambda e: triplet(e), ["TypeError"]),
        (lambda e, c: triplet(e[:2], c), ["no negatives"]),
        (matryoshka(triplet, (32,)), ["loss.matryoshka_dims: 32"]),
        (partial(triplet, **UNKNOWN), ["TypeError", "factor"]),
    ],
)
def test_losses_that_a_step_cannot_use(loss, names, refused):
    with refused(*names, mask="(?<=random embeddings ).*(?=; )"):
        traits(loss)


def test_a_loss_for_embeddings_of_unit_length_is_accepted() -> None:
    """It is not finite at other lengths."""

    def bounded(embeddings, columns):
        anchor, positive, _ = embeddings
        return -jnp.log((1 + jnp.sum(anchor * positive, axis=1)) / 2)

    assert traits(bounded) == (True, True)
    assert LossTraits(bounded, "bounded", 3, DIM, {}, normalized=True).decomposable


def test_a_further_column_may_have_more_axes() -> None:
    def weighted(embeddings, columns):
        return columns["vector"].sum(axis=1) * jnp.sum(embeddings[0] ** 2, axis=1)

    assert traits(weighted, {"vector": np.ones((5, 3), np.float32)}) == (True, True)


def test_a_loss_that_exits(refused) -> None:
    def exits(embeddings, columns):
        raise SystemExit(3)

    with refused("SystemExit: 3"):
        traits(exits)
