"""Evaluation of parameters on splits."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets_of_rows import dataset_of

from stella_jax import Stella
from train.data import Dataset
from train.embedding_scores import triplet_accuracy
from train.evaluation import Evaluation, primary
from train.losses import Columns, Embeddings, Loss, multiple_negatives_ranking, triplet

WORDS = ["fog", "law", "owl", "sea", "ink"]
ROWS = dataset_of([(f"a {w}", f"one {w}", f"no {v}") for w, v in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)], "")
PAIRS = dataset_of(list(zip(ROWS.texts["anchor"], ROWS.texts["positive"], strict=True)), "")


def evaluation(stella: Stella, loss: Loss = triplet, prompts: Mapping[str, str] | None = None) -> Evaluation:
    pad_id = stella.config.pad_token_id
    return Evaluation(stella.model, stella.tokenizer, pad_id, stella.mesh, prompts or {}, loss, batch_size=2)


def embedded(model: Stella, rows: Dataset) -> list[np.ndarray]:
    return [model.encode(list(texts)) for texts in rows.texts.values()]


def test_scores_are_those_of_the_vectors_of_encode(tiny) -> None:
    a, p, n = embedded(tiny, ROWS)
    found = evaluation(tiny)(tiny.model.params(), ROWS)
    loss = triplet((jnp.asarray(a), jnp.asarray(p), jnp.asarray(n))).mean()
    assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found | triplet_accuracy(a, p, n) == found
    assert primary(found) == found["cosine_accuracy"]
    assert found["cosine_recall@5"] == 1


def test_a_ranking_loss_is_computed_over_batches_in_order(tiny) -> None:
    a, p = embedded(tiny, PAIRS)
    found = evaluation(tiny, multiple_negatives_ranking)(tiny.model.params(), PAIRS)
    batches = [slice(0, 2), slice(2, 4), slice(4, 5)]
    losses = [float(multiple_negatives_ranking((jnp.asarray(a[b]), jnp.asarray(p[b]))).sum()) for b in batches]
    assert found["loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert "cosine_accuracy" not in found
    assert primary(found) == found["cosine_mrr@10"]


def test_an_own_loss_gets_weights_and_further_columns(tiny) -> None:
    def own(embeddings: Embeddings, columns: Columns) -> jax.Array:
        return columns["score"] * columns["weights"] + 0 * embeddings[0][:, 0]

    scores = np.array([1, 2, 3, 4, 7], np.float32)
    rows = dataset_of(list(zip(*PAIRS.texts.values(), strict=True)), "", columns={"score": scores})
    assert evaluation(tiny, own)(tiny.model.params(), rows)["loss"] == pytest.approx(scores.mean())


def test_the_current_parameters_are_evaluated_with_ticks(tiny) -> None:
    params, ticks = tiny.model.params(), []
    before = evaluation(tiny)(params, ROWS)
    after = evaluation(tiny)(params | {"head/kernel": params["head/kernel"] * 2}, ROWS, lambda: ticks.append(1))
    assert after["loss"] != before["loss"]
    assert after["cosine_accuracy"] == before["cosine_accuracy"]
    assert ticks


def test_prompts_are_put_before_their_column(tiny) -> None:
    with_prompt = evaluation(tiny, prompts={"anchor": "sea sea "})(tiny.model.params(), ROWS)
    spelt_out = dataset_of([(f"sea sea {a}", p, n) for a, p, n in zip(*ROWS.texts.values(), strict=True)], "")
    assert with_prompt == evaluation(tiny)(tiny.model.params(), spelt_out)


def test_all_positives_of_an_anchor_are_relevant_to_it(tiny) -> None:
    twice = dataset_of([("a fog", "one sea"), ("a fog", "one fog"), ("a law", "one sea")], "")
    found = evaluation(tiny, multiple_negatives_ranking)(tiny.model.params(), twice)
    assert found["cosine_recall@3"] == 1
    assert found["cosine_precision@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
