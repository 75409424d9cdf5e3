"""Every loss, by hand and against torch autograd and sentence-transformers' own classes: value and gradient."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import stella_in_float64
from marks import nightly

from train.losses import (
    Loss,
    cosent,
    gist_embed,
    kl_distillation,
    margin_mse,
    matryoshka,
    multiple_negatives_ranking,
    triplet,
)
from train.losses import stella_distillation as stella
from train.losses.ranking import DIRECTIONS, HARDNESS_MODES

B, E = 6, 24
PADDED = 9
WEIGHTS = jnp.asarray(np.arange(PADDED) < B, jnp.float32)
DISTANCES = ("euclidean", "cosine", "manhattan")


@dataclass(frozen=True)
class Case:
    """A loss by its parts, so that its peer can be built of the same."""

    base: Any
    options: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    texts: tuple[int, ...] = (2, 3, 4)

    @property
    def loss(self) -> Loss:
        loss = partial(self.base, **self.options)
        return matryoshka(loss, self.dims, self.weights) if self.dims else loss


BOTH_WAYS: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
RELATIVE = {"margin_strategy": "relative", "margin": 0.1, "temperature": 0.1}
CASES = {
    **{
        f"triplet-{distance}": Case(triplet, {"distance": distance, "margin": 0.7}, texts=(3,))
        for distance in DISTANCES
    },
    "ranking": Case(multiple_negatives_ranking, {}),
    "ranking-both-ways": Case(multiple_negatives_ranking, BOTH_WAYS | {"scale": 7.0}),
    "ranking-joint": Case(multiple_negatives_ranking, {"directions": BOTH_WAYS["directions"]}),
    "ranking-queries": Case(multiple_negatives_ranking, {"directions": ("query_to_query", "query_to_doc")}),
    "ranking-all": Case(multiple_negatives_ranking, {"directions": DIRECTIONS, "scale": 7.0}),
    **{
        f"ranking-{mode}": Case(multiple_negatives_ranking, {"hardness_mode": mode, "hardness_strength": 5.0})
        for mode in HARDNESS_MODES
    },
    "ranking-all-harder": Case(
        multiple_negatives_ranking,
        {"directions": DIRECTIONS, "hardness_mode": "all_negatives", "hardness_strength": 9.0},
        texts=(4,),
    ),
    "cosent": Case(cosent, {}, texts=(2,)),
    "cosent-scale": Case(cosent, {"scale": 3.0}, texts=(2,)),
    "margin_mse": Case(margin_mse, {}, texts=(3, 5)),
    "margin_mse-cosine": Case(margin_mse, {"similarity": "cosine"}, texts=(3, 4)),
    "kl": Case(kl_distillation, {}, texts=(3, 5)),
    "kl-temperature": Case(kl_distillation, {"similarity": "cosine", "temperature": 0.3}, texts=(3, 4)),
    "gist": Case(gist_embed, {"temperature": 0.05}, texts=(2, 3)),
    "gist-sharp": Case(gist_embed, {}, texts=(2,)),
    "gist-margin": Case(gist_embed, {"temperature": 0.1, "margin": 0.2}, texts=(2, 3)),
    "gist-relative": Case(gist_embed, RELATIVE, texts=(2, 3)),
    "gist-anchors": Case(gist_embed, {"temperature": 0.1, "contrast_positives": False}, texts=(2, 3)),
    "gist-positives": Case(gist_embed, {"temperature": 0.1, "contrast_anchors": False}, texts=(2, 3)),
    "matryoshka-ranking": Case(multiple_negatives_ranking, {}, (24, 12, 5)),
    "matryoshka-triplet": Case(triplet, {"margin": 0.7}, (24, 8), texts=(3,)),
    "matryoshka-weights": Case(multiple_negatives_ranking, {"scale": 5.0}, (24, 12, 5), (1.0, 0.5, 0.125)),
    "matryoshka-cosent": Case(cosent, {}, (24, 12, 5), texts=(2,)),
    "matryoshka-margin_mse": Case(margin_mse, {}, (24, 8), texts=(4,)),
    "matryoshka-kl": Case(kl_distillation, {}, (24, 8), texts=(4,)),
    "matryoshka-gist": Case(gist_embed, {"temperature": 0.1}, (24, 8), texts=(3,)),
}
# Without a peer in sentence-transformers.
OWN = {
    "stella": Case(stella, {}, texts=(1, 2)),
    "stella-dims": Case(stella, {"matryoshka_dims": (24, 12, 5)}, texts=(1, 2)),
}
ALL = CASES | OWN
# Each with as many columns of texts as it takes.
SIZES = [(name, texts) for name, case in CASES.items() for texts in case.texts]


def embeddings(columns: int = 3, rows: int = B) -> tuple[jax.Array, ...]:
    """Positives near their anchors; triplets on either side of the margin."""
    rng = np.random.default_rng(0)
    anchor = rng.standard_normal((rows, E))
    others = [anchor + rng.standard_normal((rows, E)) for _ in range(columns - 1)]
    return tuple(jnp.asarray(x, jnp.float32) for x in (anchor, *others))


def further(case: Case, texts: int, rows: int = B) -> dict[str, jax.Array]:
    """Further columns of a loss: some scores are equal, some negatives are nearer to the guide than the positive."""
    rng = np.random.default_rng(1)
    made: dict[Any, tuple[str, Callable[[], np.ndarray]]] = {
        cosent: ("score", lambda: rng.integers(0, 4, rows) / 4),
        margin_mse: ("score", lambda: 10 * rng.standard_normal((rows, texts - 1))),
        kl_distillation: ("score", lambda: rng.standard_normal((rows, texts - 1))),
        gist_embed: ("guide", lambda: rng.standard_normal((rows, 1, 9)) + 0.7 * rng.standard_normal((rows, texts, 9))),
        stella: ("teacher", lambda: rng.standard_normal((rows, texts, E) if texts > 1 else (rows, E))),
    }
    if case.base not in made:
        return {}
    name, make = made[case.base]
    return {name: jnp.asarray(make(), jnp.float32)}


@cache
def program(name: str) -> Callable[..., Any]:
    """The weighted mean and its gradient, as in a training step. Tests pass one shape, so that it is compiled once."""

    def mean(columns, weights, more):
        return jnp.sum(ALL[name].loss(columns, {**more, "weights": weights}) * weights) / jnp.sum(weights)

    return jax.jit(jax.value_and_grad(mean))


def first_rows(columns, rows: int = B):
    return jax.tree.map(lambda x: x[:rows], columns)


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


@pytest.mark.parametrize("name", [*list(ALL)[::4], *nightly(*(name for i, name in enumerate(ALL) if i % 4))])
def test_a_loss_works_without_a_trainer(name) -> None:
    """Without weights, every row counts; rows of weight 0 change nothing."""
    texts = ALL[name].texts[-1]
    columns, more = embeddings(texts, PADDED), further(ALL[name], texts, PADDED)
    expected = jax.jit(ALL[name].loss)(first_rows(columns), first_rows(more))
    assert expected.shape == (B,) and expected.dtype == jnp.float32
    value, gradients = program(name)(columns, WEIGHTS, more)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5, atol=1e-6)
    assert all(gradient[:B].any() and not gradient[B:].any() for gradient in gradients)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_is_finite_where_texts_are_the_same(name) -> None:
    """In a row, and in all of them; and where the guide or the teacher holds them to be."""
    anchor, texts = embeddings(rows=PADDED)[0], ALL[name].texts[-1]
    more = further(ALL[name], texts, PADDED)
    same = {key: jnp.ones_like(value) for key, value in more.items()}
    for columns in [(anchor,) * texts, (*(anchor,) * (texts - 1), -anchor), (jnp.ones_like(anchor),) * texts]:
        for each in (more, same):
            value, gradients = program(name)(columns, jnp.ones(PADDED), each)
            assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("loss", "texts", "columns", "names"),
    [
        (triplet, 1, {}, ["loss triplet"]),
        (triplet, 2, {}, ["loss triplet"]),
        (triplet, 4, {}, ["loss triplet"]),
        (multiple_negatives_ranking, 1, {}, ["loss multiple_negatives_ranking"]),
        (gist_embed, 1, {}, ["loss gist_embed"]),
        (cosent, 3, {"score": (B,)}, ["loss cosent"]),
        (cosent, 2, {}, ["loss cosent", "'score'"]),
        (cosent, 2, {"score": (B, 3)}, ["loss cosent", "'score'"]),
        (margin_mse, 2, {"score": (B,)}, ["loss margin_mse"]),
        (margin_mse, 3, {"score": (B, 4)}, ["loss margin_mse", "'score'"]),
        (kl_distillation, 3, {"score": (B,)}, ["loss kl_distillation", "'score'"]),
        (gist_embed, 2, {}, ["loss gist_embed", "'guide'"]),
        (gist_embed, 3, {"guide": (B, 2, 5)}, ["loss gist_embed", "'guide'"]),
        (stella, 1, {}, ["loss stella_distillation", "'teacher'"]),
        (stella, 2, {"teacher": (B, E)}, ["loss stella_distillation", "'teacher'"]),
    ],
)
def test_missing_or_wrong_columns(loss, texts, columns, names, refused) -> None:
    with refused(*names):
        loss(embeddings(texts), {name: jnp.ones(shape) for name, shape in columns.items()})


@pytest.mark.parametrize(
    ("loss", "options", "name"),
    [
        (triplet, {"distance": "dot"}, "'dot'"),
        (kl_distillation, {"similarity": "euclidean"}, "'euclidean'"),
        (gist_embed, {"margin_strategy": "some"}, "'some'"),
        (multiple_negatives_ranking, {"directions": ["query_to_doc", "doc_to_docs"]}, "'doc_to_docs'"),
        (multiple_negatives_ranking, {"directions": ["doc_to_query"]}, "'query_to_doc'"),
        (multiple_negatives_ranking, {"directions": []}, "'query_to_doc'"),
        (multiple_negatives_ranking, {"partition_mode": "separate"}, "'separate'"),
        (multiple_negatives_ranking, {"partition_mode": "per_direction", "directions": DIRECTIONS}, "'per_direction'"),
        (multiple_negatives_ranking, {"hardness_mode": "hard", "hardness_strength": 1.0}, "'hard'"),
        (multiple_negatives_ranking, {"hardness_mode": "hard_negatives"}, "hardness_strength"),
        (multiple_negatives_ranking, {"hardness_strength": 5.0}, "hardness_strength"),
        (multiple_negatives_ranking, {"hardness_mode": "hard_negatives", "hardness_strength": -1}, "hardness_strength"),
    ],
)
def test_invalid_arguments(loss, options, name, refused) -> None:
    with refused(loss.__name__, name):
        loss(embeddings(), {"score": jnp.ones((B, 2)), "guide": jnp.ones((B, 3, 5))}, **options)


def test_a_prefix_above_the_embedding_dimension(refused) -> None:
    with refused("loss.matryoshka_dims", "25"):
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
    from transformers import PreTrainedTokenizerBase

    class NoTokenizer(PreTrainedTokenizerBase):
        def __init__(self):
            pass

        def get_vocab(self):
            return {}

        def __getattr__(self, name):
            raise AttributeError(name)

    class Model(torch.nn.Module):
        """Embeddings in, embeddings out."""

        max_seq_length = 1
        tokenizer = NoTokenizer()

        def __init__(self, key="embedding"):
            super().__init__()
            self.key = key

        def forward(self, features):
            return {"sentence_embedding": features[self.key]}

        def get_embedding_dimension(self):
            return E

    model, options = Model(), dict(case.options)
    if "similarity" in options:
        name = {"dot": "pairwise_dot_score", "cosine": "pairwise_cos_sim"}[options.pop("similarity")]
        from sentence_transformers import util

        options["similarity_fct"] = getattr(util, name)
    if case.base is triplet:
        metric = getattr(losses.TripletDistanceMetric, options.get("distance", "euclidean").upper())
        peer = losses.TripletLoss(model, distance_metric=metric, triplet_margin=options["margin"])
    elif case.base is multiple_negatives_ranking:
        peer = losses.MultipleNegativesRankingLoss(model, **options)
    elif case.base is gist_embed:
        peer = losses.GISTEmbedLoss(model, Model("guide"), **options)
    else:
        kind = {cosent: "CoSENTLoss", margin_mse: "MarginMSELoss", kl_distillation: "DistillKLDivLoss"}[case.base]
        peer = getattr(losses, kind)(model, **options)
    if case.dims:
        weights = case.weights and list(case.weights)
        return losses.MatryoshkaLoss(model, peer, matryoshka_dims=list(case.dims), matryoshka_weights=weights)
    return peer


@pytest.mark.torch
@pytest.mark.parametrize("rows", [PADDED, *nightly(2, B, 33)])
@pytest.mark.parametrize(("name", "texts"), SIZES)
def test_value_and_gradient_are_those_of_sentence_transformers(torch, name, texts, rows) -> None:
    """In float64 there, whose float32 differs more from it than ours; rows beyond the first have weight 0."""
    most = max(rows, PADDED)
    ours, more = embeddings(texts, most), further(CASES[name], texts, most)
    theirs = [torch[0].tensor(np.float64(x), requires_grad=True) for x in first_rows(ours, rows)]
    guides = [torch[0].tensor(np.float64(more["guide"][:rows, i])) if "guide" in more else None for i in range(texts)]
    score = torch[0].tensor(np.float64(more["score"][:rows])) if "score" in more else torch[0].empty(0)
    features = [{"embedding": x, "guide": guide} for x, guide in zip(theirs, guides, strict=True)]
    expected = peer_loss(torch[0], torch[1], CASES[name])(features, score)
    expected.backward()
    value, gradients = program(name)(ours, jnp.asarray(np.arange(most) < rows, jnp.float32), more)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    for found, peer in zip(gradients, theirs, strict=True):
        scale = max(1.0, float(peer.grad.abs().max()))
        np.testing.assert_allclose(found[:rows], peer.grad.numpy(), rtol=1e-5, atol=1e-6 * scale)
        assert not found[rows:].any()


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, BOTH_WAYS])
@pytest.mark.parametrize("distance", DISTANCES)
def test_value_and_gradient_are_those_of_autograd_in_float64(torch, distance, options) -> None:
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
    if options:
        normaliser = (normaliser + scores[:, :B].logsumexp(0)) / 2
    expected = triplets + (normaliser - scores[own, own]).mean()
    expected.backward()

    def both(columns):
        ranking = multiple_negatives_ranking(columns, **options)
        return jnp.mean(triplet(columns, distance=distance, margin=0.7) + ranking)

    value, gradients = jax.jit(jax.value_and_grad(both))(ours)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, peer in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found, peer.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize(("name", "dims"), [("stella", ()), ("stella-dims", (24, 12, 5))])
def test_stella_distillation_is_its_formula_in_float64(torch, texts, name, dims) -> None:
    torch, columns = torch[0], embeddings(texts, PADDED)
    more = further(Case(stella), texts, PADDED)
    theirs = [torch.tensor(np.asarray(x[:B]), dtype=torch.float64, requires_grad=True) for x in columns]
    teacher = more["teacher"][:B]
    joined = np.concatenate([np.asarray(teacher).reshape(B, texts, E)[:, i] for i in range(texts)])
    expected = stella_in_float64(torch, theirs, torch.tensor(joined, dtype=torch.float64), dims or (E,))
    expected.backward()
    value, gradients = program(name)(columns, WEIGHTS, more)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, peer in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found[:B], peer.grad.numpy(), rtol=1e-4, atol=1e-4)
        assert not found[B:].any()


@pytest.mark.parametrize("rows", [2, 9, 40])
def test_stella_distillation_compares_all_pairs_of_pairs(rows) -> None:
    """Against the whole matrix in float64; the teacher has some equal similarities, and two rows are padding."""
    rng, texts = np.random.default_rng(rows), rows + 2
    student = rng.standard_normal((texts, E)) + 1
    teacher = rng.standard_normal((texts, 3))
    teacher[rows // 2] = teacher[0]
    above = np.triu_indices(rows, 1)
    unit = student[:rows] / np.linalg.norm(student[:rows], axis=1, keepdims=True)
    whole = (teacher / np.linalg.norm(teacher, axis=1, keepdims=True)).astype(np.float32)
    s, t = (
        (unit @ unit.T)[above],
        np.asarray(jnp.einsum("ne,me->nm", whole, whole, precision="highest"))[:rows, :rows][above],
    )
    hinges = np.maximum(0, np.where(t[None] < t[:, None], 1, -1) * (s[None] - s[:, None]) + 0.015)
    expected = hinges[np.triu_indices(len(s), 1)].sum() / max(1, len(s) * (len(s) - 1) // 2)
    weights = jnp.asarray(np.arange(texts) < rows, jnp.float32)
    only = partial(stella, cosine_weight=0.0, similarity_weight=0.0, triplet_weight=1.0)
    columns = {"teacher": jnp.asarray(teacher, jnp.float32), "weights": weights}
    found = jax.jit(only)((jnp.asarray(student, jnp.float32),), columns)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_teachers_of_another_dimension(refused) -> None:
    columns, teacher = embeddings(1), jnp.asarray(np.random.default_rng(0).standard_normal((B, 40)), jnp.float32)
    with refused("loss stella_distillation", "40", "24"):
        stella(columns, {"teacher": teacher})
    assert np.isfinite(stella(columns, {"teacher": teacher}, cosine_weight=0.0)).all()
