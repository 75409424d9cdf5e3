"""Every loss, by hand and against torch autograd and sentence-transformers' own classes: value and gradient."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stella_jax import StellaError
from train.losses import Loss, matryoshka, multiple_negatives_ranking, triplet

B, E = 6, 24
DISTANCES = ("euclidean", "cosine", "manhattan")


@dataclass(frozen=True)
class Case:
    """A loss by its parts, so that its peer can be built of the same."""

    base: Any
    options: dict[str, Any]
    dims: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None

    @property
    def loss(self) -> Loss:
        loss = partial(self.base, **self.options)
        return matryoshka(loss, self.dims, self.weights) if self.dims else loss


CASES = {
    **{f"triplet-{distance}": Case(triplet, {"distance": distance, "margin": 0.7}) for distance in DISTANCES},
    "ranking": Case(multiple_negatives_ranking, {}),
    "ranking-symmetric": Case(multiple_negatives_ranking, {"scale": 7.0, "symmetric": True}),
    "matryoshka-ranking": Case(multiple_negatives_ranking, {}, (24, 12, 5)),
    "matryoshka-triplet": Case(triplet, {"margin": 0.7}, (24, 8)),
    "matryoshka-weights": Case(multiple_negatives_ranking, {"scale": 5.0}, (24, 12, 5), (1.0, 0.5, 0.125)),
}


def embeddings(columns: int = 3, rows: int = B) -> tuple[jax.Array, ...]:
    """Positives near their anchors; triplets on either side of the margin."""
    rng = np.random.default_rng(0)
    anchor = rng.standard_normal((rows, E))
    others = [anchor + rng.standard_normal((rows, E)) for _ in range(columns - 1)]
    return tuple(jnp.asarray(x, jnp.float32) for x in (anchor, *others))


def value_and_gradient(loss: Loss, columns, weights=None):
    """Of the weighted mean, as a step takes it."""
    shares = jnp.ones(len(columns[0])) if weights is None else weights

    def mean(columns):
        return jnp.sum(loss(columns, {"weights": shares}) * shares) / jnp.sum(shares)

    return jax.value_and_grad(mean)(columns)


def test_triplets_by_hand() -> None:
    anchor, positive, negative = jnp.zeros((2, 2)), jnp.array([[3.0, 4.0]] * 2), jnp.array([[0.0, 2.0], [0.0, 20.0]])
    rows = anchor, positive, negative
    assert triplet(rows).tolist() == [5 - 2 + 5, 0]
    assert triplet(rows, distance="manhattan", margin=1.0).tolist() == [7 - 2 + 1, 0]
    assert triplet((anchor, positive, negative), margin=0.0).mean() == 1.5


def test_ranking_by_hand() -> None:
    two = jnp.eye(2)
    e = np.exp(20)
    assert multiple_negatives_ranking((two, two)).tolist() == pytest.approx([np.log(1 + 1 / e)] * 2, abs=1e-7)
    assert multiple_negatives_ranking((two, two, two)).mean() == pytest.approx(np.log(2), rel=1e-6)
    assert multiple_negatives_ranking((two, two), scale=1.0).mean() == pytest.approx(np.log(np.e + 1) - 1, rel=1e-6)


def test_a_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    columns, loss = embeddings(), partial(triplet, margin=0.7)
    prefixes = [
        tuple(x[:, :dim] / jnp.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in columns) for dim in (8, 3)
    ]
    expected = 2 * loss(prefixes[0]) + 0.5 * loss(prefixes[1])
    np.testing.assert_allclose(matryoshka(loss, [8, 3], [2, 0.5])(columns, {}), expected, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_needs_no_trainer(name) -> None:
    """Called with embeddings alone, it is that of a batch in which every row counts, jitted or not."""
    columns, loss = embeddings(), CASES[name].loss
    expected = loss(columns, {"weights": jnp.ones(B)})
    assert expected.shape == (B,) and expected.dtype == jnp.float32
    np.testing.assert_array_equal(loss(columns, {}), expected)
    np.testing.assert_allclose(jax.jit(loss)(columns, {"score": jnp.ones(B)}), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_finite_where_texts_are_the_same(name) -> None:
    anchor = embeddings()[0]
    for columns in [(anchor, anchor, anchor), (anchor, anchor, -anchor)]:
        _, gradients = value_and_gradient(CASES[name].loss, columns)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_weight_0_change_nothing(name) -> None:
    columns, loss = embeddings(), CASES[name].loss
    padded = tuple(jnp.concatenate([x, x[:3] + 1]) for x in columns)
    weights = jnp.concatenate([jnp.ones(B), jnp.zeros(3)])
    value, gradients = value_and_gradient(loss, columns)
    padded_value, padded_gradients = value_and_gradient(loss, padded, weights)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    for found, expected in zip(padded_gradients, gradients, strict=True):
        np.testing.assert_allclose(found[:B], expected, rtol=1e-5, atol=1e-6)
        assert not found[B:].any()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StellaError, match="needs a negative"):
        triplet(embeddings(2))
    with pytest.raises(StellaError, match=r"loss\.matryoshka_dims: 25"):
        matryoshka(triplet, (24, 25))(embeddings(), {})


@pytest.fixture(scope="module")
def torch():
    """PyTorch and the losses of sentence-transformers; their own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sentence_transformers.sentence_transformer import losses

        return torch, losses


def peer_loss(torch, losses, case: Case):
    class Model(torch.nn.Module):
        """Embeddings in, embeddings out."""

        def forward(self, features):
            return dict(features)

        def get_embedding_dimension(self):
            return E

    model, options = Model(), case.options
    if case.base is triplet:
        metric = getattr(losses.TripletDistanceMetric, options.get("distance", "euclidean").upper())
        peer = losses.TripletLoss(model, distance_metric=metric, triplet_margin=options["margin"])
    else:
        more: dict[str, Any] = {"scale": options.get("scale", 20.0)}
        if options.get("symmetric"):
            more |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
        peer = losses.MultipleNegativesRankingLoss(model, **more)
    if case.dims:
        weights = case.weights and list(case.weights)
        return losses.MatryoshkaLoss(model, peer, matryoshka_dims=list(case.dims), matryoshka_weights=weights)
    return peer


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, n) for name in CASES for n in (2, 3, 4) if n == 3 or "triplet" not in name],
)
def test_value_and_gradient_are_those_of_sentence_transformers(torch, name, columns) -> None:
    ours = embeddings(columns)
    theirs = [torch[0].tensor(np.asarray(x), requires_grad=True) for x in ours]
    expected = peer_loss(torch[0], torch[1], CASES[name])(
        [{"sentence_embedding": x} for x in theirs], torch[0].empty(0)
    )
    expected.backward()
    value, gradients = value_and_gradient(CASES[name].loss, ours)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, peer in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found, peer.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_value_and_gradient_are_those_of_autograd_in_float64(torch, distance, symmetric) -> None:
    """The formulas written once more, for torch to differentiate."""
    torch = torch[0]
    ours = embeddings()
    a, p, n = theirs = [torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in ours]
    apart = {
        "euclidean": lambda x, y: (x - y).norm(dim=-1),
        "manhattan": lambda x, y: (x - y).abs().sum(-1),
        "cosine": lambda x, y: 1 - torch.cosine_similarity(x, y),
    }[distance]
    triplets = torch.clamp(apart(a, p) - apart(a, n) + 0.7, min=0).mean()
    scores = 20 * torch.cosine_similarity(a[:, None], torch.cat([p, n])[None], dim=-1)
    own = torch.arange(B)
    normaliser = scores.logsumexp(1)
    if symmetric:
        normaliser = (normaliser + scores[:, :B].logsumexp(0)) / 2
    expected = triplets + (normaliser - scores[own, own]).mean()
    expected.backward()

    def both(columns):
        ranking = multiple_negatives_ranking(columns, symmetric=symmetric)
        return jnp.mean(triplet(columns, distance=distance, margin=0.7) + ranking)

    value, gradients = jax.value_and_grad(both)(ours)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, peer in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found, peer.grad.numpy(), rtol=1e-4, atol=1e-5)
