"""Trainings side by side: sentence-transformers' losses and torch's AdamW on transformers' own GteModel."""

import json
import warnings
from functools import partial

import numpy as np
import pytest
from paths import GOLDENS
from shapes import SHAPES

from stella_jax import load
from train import Batcher, StepConfig, losses, make_step, optimizers
from train.recipe import OptimizerSection

pytestmark = [pytest.mark.torch, pytest.mark.soak]  # a minute each; test_training_goldens.py has recorded ones

BATCH_SIZE = 4
ADAMW = OptimizerSection(learning_rate=1e-4, weight_decay=0.01)
TRIPLETS = [
    json.loads(line) for line in (GOLDENS.parent.parent / "examples/porsche_triplets.jsonl").read_text().splitlines()
]
DIMS = (32, 16)
LOSSES = {
    "triplet_euclidean": losses.triplet,
    "triplet_manhattan": partial(losses.triplet, distance="manhattan"),
    "triplet_cosine": partial(losses.triplet, distance="cosine", margin=0.5),
    "multiple_negatives_ranking": losses.multiple_negatives_ranking,
    "matryoshka": losses.matryoshka(losses.multiple_negatives_ranking, DIMS),
}


@pytest.fixture(scope="module")
def peers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peers
        from sentence_transformers.sentence_transformer import losses

        yield peers, losses


@pytest.fixture(scope="module")
def checkpoint(peers, tmp_path_factory):
    model = peers[0].random_model(SHAPES["stella-like"])
    return peers[0].save(model, tmp_path_factory.mktemp("stella"), GOLDENS / "stella")


def texts(step: int) -> list[list[str]]:
    rows = [TRIPLETS[(BATCH_SIZE * step + i) % len(TRIPLETS)] for i in range(BATCH_SIZE)]
    return [[row[column] for row in rows] for column in ("anchor", "positive", "negative")]


def our_log(checkpoint, name: str, steps: int) -> list[tuple[float, float]]:
    model = load(checkpoint)
    optimizer = optimizers.from_recipe(ADAMW, model.params(), steps)
    state, step = make_step(model, LOSSES[name], optimizer.transformation, StepConfig(dropout=False))
    batcher = Batcher.for_model(model, BATCH_SIZE).fit([texts(number) for number in range(steps)], all_seen=True)
    log = []
    for number in range(steps):
        state, metrics = step(state, batcher(texts(number)))
        log.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return log


def their_log(peers, losses, checkpoint, name: str, steps: int) -> list[tuple[float, float]]:
    torch = peers.torch
    # In float64: torch's own float32 is up to 4e-4 from it after 50 steps.
    model = peers.sentence_transformer(checkpoint, pooling="mean", dense=None, normalize=False).double()
    model.max_seq_length = peers.MAX_LENGTH
    model.eval()  # no dropout
    distance = losses.TripletDistanceMetric
    ranking = losses.MultipleNegativesRankingLoss(model)
    loss = {
        "triplet_euclidean": losses.TripletLoss(model),
        "triplet_manhattan": losses.TripletLoss(model, distance_metric=distance.MANHATTAN),
        "triplet_cosine": losses.TripletLoss(model, distance_metric=distance.COSINE, triplet_margin=0.5),
        "multiple_negatives_ranking": ranking,
        "matryoshka": losses.MatryoshkaLoss(model, ranking, list(DIMS)),
    }[name]
    named = list(model.named_parameters())
    free = [parameter for name, parameter in named if name.endswith("bias") or "norm" in name.lower() or "_ln" in name]
    rest = [parameter for _, parameter in named if not any(parameter is each for each in free)]
    groups = [{"params": rest, "weight_decay": ADAMW.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    rates = np.asarray(
        optimizers.schedule(ADAMW.schedule, ADAMW.learning_rate, steps, ADAMW.warmup_ratio)(np.arange(steps))
    )
    log = []
    for step in range(steps):
        value = loss([model.preprocess(column) for column in texts(step)], torch.empty(0))
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
        log.append((value.item(), norm.item()))
    return log


@pytest.mark.parametrize("name", LOSSES)
def test_fifty_steps(peers, checkpoint, name: str) -> None:
    steps = 50
    ours, theirs = (
        np.array(log)
        for log in (our_log(checkpoint, name, steps), their_log(peers[0], peers[1], checkpoint, name, steps))
    )
    assert theirs[-5:, 0].mean() < 0.5 * theirs[0, 0]  # it learned
    print(f"{name}, {steps} steps: largest difference of loss and gradient norm {np.abs(ours - theirs).max(axis=0)},")
    print(f"relative where they are above 0.1 {(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 0.1)).max(axis=0)}")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
