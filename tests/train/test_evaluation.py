"""Splits evaluated with the parameters of the moment."""

import jax.numpy as jnp
import numpy as np
import pytest
from train.params import load

from stella_jax import Stella
from train.data import Dataset, dataset_of
from train.evaluation import Evaluation, primary
from train.evaluators import triplet_accuracy
from train.losses import Loss, multiple_negatives_ranking_loss, triplet_loss

WORDS = ["fog", "law", "owl", "sea", "ink"]
ROWS = dataset_of([(f"a {w}", f"one {w}", f"no {v}") for w, v in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)], "")


@pytest.fixture
def tiny() -> Stella:
    """Of its own for each test, as it is lent other parameters."""
    model = Stella.from_pretrained("tiny", dim=32)
    model.max_seq_length = 8
    return model


def evaluation(model: Stella, loss: Loss | None = None, prompts: dict[str, str] | None = None) -> Evaluation:
    return Evaluation(model, prompts or {}, loss or Loss(), batch_size=2)


def params_of(model: Stella):
    return load(model.checkpoint, model.mesh, model.dim)[1]


def embedded(model: Stella, rows: Dataset) -> list[np.ndarray]:
    return [model.encode(list(texts)) for texts in rows.texts.values()]


def test_scores_are_those_of_what_encode_gives(tiny):
    a, p, n = embedded(tiny, ROWS)
    found = evaluation(tiny)(params_of(tiny), ROWS)
    loss = triplet_loss(jnp.asarray(a), jnp.asarray(p), jnp.asarray(n))
    assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found | triplet_accuracy(a, p, n) == found
    assert primary(found) == found["cosine_accuracy"]
    assert found["cosine_recall@5"] == 1


def test_a_ranking_loss_is_that_of_batches_in_their_order(tiny):
    pairs = dataset_of(list(zip(ROWS.texts["anchor"], ROWS.texts["positive"], strict=True)), "")
    a, p = embedded(tiny, pairs)
    found = evaluation(tiny, Loss("multiple_negatives_ranking"))(params_of(tiny), pairs)
    batches = [slice(0, 2), slice(2, 4), slice(4, 5)]
    losses = [float(multiple_negatives_ranking_loss(jnp.asarray(a[b]), jnp.asarray(p[b]))) for b in batches]
    assert found["loss"] == pytest.approx(np.average(losses, weights=[2, 2, 1]), rel=1e-5)
    assert "cosine_accuracy" not in found
    assert primary(found) == found["cosine_mrr@10"]


def test_it_follows_the_parameters_and_ticks(tiny):
    params, ticks = params_of(tiny), []
    before = evaluation(tiny)(params, ROWS)
    after = evaluation(tiny)(params | {"head/kernel": params["head/kernel"] * 2}, ROWS, lambda: ticks.append(1))
    assert after["loss"] != before["loss"]
    assert after["cosine_accuracy"] == before["cosine_accuracy"]
    assert ticks


def test_prompts_are_put_before_their_column(tiny):
    with_prompt = evaluation(tiny, prompts={"anchor": "sea sea "})(params_of(tiny), ROWS)
    spelt_out = dataset_of([(f"sea sea {a}", p, n) for a, p, n in zip(*ROWS.texts.values(), strict=True)], "")
    assert with_prompt == evaluation(tiny)(params_of(tiny), spelt_out)


def test_all_positives_of_an_anchor_are_relevant_to_it(tiny):
    twice = dataset_of([("a fog", "one sea"), ("a fog", "one fog"), ("a law", "one sea")], "")
    found = evaluation(tiny, Loss("multiple_negatives_ranking"))(params_of(tiny), twice)
    assert found["cosine_recall@3"] == 1
    assert found["cosine_precision@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
