"""Every loss, by hand and against torch autograd and sentence-transformers' own classes: value and gradient."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stella_jax import StellaError
from train.losses import Loss, multiple_negatives_ranking_loss, triplet_loss

B, E = 6, 24
DISTANCES = ("euclidean", "cosine", "manhattan")
LOSSES = {
    **{f"triplet-{distance}": Loss(distance=distance, margin=0.7) for distance in DISTANCES},
    "ranking": Loss("multiple_negatives_ranking"),
    "ranking-symmetric": Loss("multiple_negatives_ranking", scale=7.0, symmetric=True),
    "matryoshka-ranking": Loss("multiple_negatives_ranking", matryoshka_dims=(24, 12, 5)),
    "matryoshka-triplet": Loss(margin=0.7, matryoshka_dims=(24, 8)),
}


def embeddings(columns: int = 3, rows: int = B) -> tuple[jax.Array, ...]:
    """Positives near their anchors; triplets on either side of the margin."""
    rng = np.random.default_rng(0)
    anchor = rng.standard_normal((rows, E))
    others = [anchor + rng.standard_normal((rows, E)) for _ in range(columns - 1)]
    return tuple(jnp.asarray(x, jnp.float32) for x in (anchor, *others))


def mean(loss: Loss, columns: tuple[jax.Array, ...], weights: jax.Array | None = None) -> jax.Array:
    shares = jnp.ones(len(columns[0])) if weights is None else weights
    return jnp.sum(loss.terms(columns, shares) * shares) / jnp.sum(shares)


def value_and_gradient(loss: Loss, columns, weights=None):
    return jax.value_and_grad(lambda columns: mean(loss, columns, weights))(columns)


def test_triplets_by_hand() -> None:
    anchor, positive, negative = jnp.zeros((2, 2)), jnp.array([[3.0, 4.0]] * 2), jnp.array([[0.0, 2.0], [0.0, 20.0]])
    assert triplet_loss(anchor, positive, negative) == (5 - 2 + 5 + 0) / 2
    assert triplet_loss(anchor, positive, negative, "manhattan", 1.0) == (7 - 2 + 1 + 0) / 2
    assert triplet_loss(anchor, positive, negative, weights=jnp.array([1.0, 3.0])) == 8 / 4


def test_ranking_by_hand() -> None:
    two = jnp.eye(2)
    e = np.exp(20)
    assert multiple_negatives_ranking_loss(two, two) == pytest.approx(np.log(1 + 1 / e), abs=1e-7)
    assert multiple_negatives_ranking_loss(two, two, two) == pytest.approx(np.log(2), rel=1e-6)
    assert multiple_negatives_ranking_loss(two, two, scale=1.0) == pytest.approx(np.log(np.e + 1) - 1, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_is_finite_where_texts_are_the_same(distance) -> None:
    anchor = embeddings()[0]
    for columns in [(anchor, anchor, anchor), (anchor, anchor, -anchor)]:
        _, gradients = value_and_gradient(Loss(distance=distance), columns)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_weight_0_change_nothing(name) -> None:
    columns, loss = embeddings(), LOSSES[name]
    padded = tuple(jnp.concatenate([x, x[:3] + 1]) for x in columns)
    weights = jnp.concatenate([jnp.ones(B), jnp.zeros(3)])
    value, gradients = value_and_gradient(loss, columns)
    padded_value, padded_gradients = value_and_gradient(loss, padded, weights)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    for found, expected in zip(padded_gradients, gradients, strict=True):
        np.testing.assert_allclose(found[:B], expected, rtol=1e-5, atol=1e-6)
        assert not found[B:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_those_of_a_mean(name) -> None:
    columns, loss = embeddings(), LOSSES[name]
    weights = jnp.arange(1.0, B + 1)
    terms = loss.terms(columns, jnp.ones(B))
    np.testing.assert_allclose(mean(loss, columns, weights), np.average(terms, weights=weights), rtol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StellaError, match="needs a negative"):
        mean(Loss(), embeddings(2))
    with pytest.raises(StellaError, match="matryoshka_dims holds 25; the head that is trained has 24"):
        mean(Loss(matryoshka_dims=(24, 25)), embeddings())
    with pytest.raises(StellaError, match=r"loss\.name 'contrastive' is unknown"):
        mean(Loss("contrastive"), embeddings())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def torch():
    """PyTorch and the losses of sentence-transformers; their own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sentence_transformers.sentence_transformer import losses

        return torch, losses


def peer_loss(torch, losses, loss: Loss):
    class Model(torch.nn.Module):
        """Embeddings in, embeddings out."""

        def forward(self, features):
            return dict(features)

        def get_embedding_dimension(self):
            return E

    model = Model()
    if loss.name == "triplet":
        metric = getattr(losses.TripletDistanceMetric, loss.distance.upper())
        peer = losses.TripletLoss(model, distance_metric=metric, triplet_margin=loss.margin)
    else:
        options: dict[str, Any] = {"scale": loss.scale}
        if loss.symmetric:
            options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
        peer = losses.MultipleNegativesRankingLoss(model, **options)
    if loss.matryoshka_dims:
        return losses.MatryoshkaLoss(model, peer, matryoshka_dims=list(loss.matryoshka_dims))
    return peer


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, n) for name in LOSSES for n in (2, 3) if n == 3 or "triplet" not in name],
)
def test_value_and_gradient_are_those_of_sentence_transformers(torch, name, columns) -> None:
    loss = LOSSES[name]
    ours = embeddings(columns)
    theirs = [torch[0].tensor(np.asarray(x), requires_grad=True) for x in ours]
    expected = peer_loss(torch[0], torch[1], loss)([{"sentence_embedding": x} for x in theirs], torch[0].empty(0))
    expected.backward()
    value, gradients = value_and_gradient(loss, ours)
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
        anchor, positive, negative = columns
        ranking = multiple_negatives_ranking_loss(anchor, positive, negative, symmetric=symmetric)
        return triplet_loss(anchor, positive, negative, distance, 0.7) + ranking

    value, gradients = jax.value_and_grad(both)(ours)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, peer in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found, peer.grad.numpy(), rtol=1e-4, atol=1e-5)
