"""A training side by side: sentence-transformers' loss and torch's AdamW on transformers' own GteModel."""

import json
import warnings

import numpy as np
import pytest
from paths import GOLDENS
from shapes import SHAPES
from train.optimizer import Optimizer, learning_rates
from train.params import load

from stella_jax.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh
from train.batches import Batcher
from train.losses import Loss
from train.step import Settings, Trainer

pytestmark = pytest.mark.torch

STEPS, ROWS = 20, 4
ADAMW = Optimizer(learning_rate=1e-4, weight_decay=0.01)
TRIPLETS = [
    json.loads(line) for line in (GOLDENS.parent.parent / "examples/porsche_triplets.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def peers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peers
        from sentence_transformers.sentence_transformer import losses

        yield peers, losses


@pytest.fixture(scope="module")
def checkpoint(peers, tmp_path_factory) -> Checkpoint:
    model = peers[0].random_model(SHAPES["stella-like"])
    return Checkpoint.open(peers[0].save(model, tmp_path_factory.mktemp("stella"), GOLDENS / "stella"))


def columns(step: int) -> list[list[str]]:
    rows = [TRIPLETS[(ROWS * step + i) % len(TRIPLETS)] for i in range(ROWS)]
    return [[row[column] for row in rows] for column in ("anchor", "positive", "negative")]


def our_log(checkpoint: Checkpoint) -> list[tuple[float, float]]:
    mesh = make_mesh()
    network, params = load(checkpoint, mesh)
    trainer = Trainer(network, params, Loss(), ADAMW, STEPS, mesh, Settings(dropout=False))
    batcher = Batcher(checkpoint.tokenizer(), ROWS, checkpoint.layout.config.pad_token_id)
    state, log = trainer.start(params), []
    for step in range(STEPS):
        state, metrics = trainer.step(state, batcher(columns(step)))
        log.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return log


def their_log(peers, losses, checkpoint: Checkpoint) -> list[tuple[float, float]]:
    torch = peers.torch
    root = checkpoint.directory.root
    model = peers.sentence_transformer(root, pooling="mean", dense=None, normalize=False)
    model.max_seq_length = checkpoint.layout.max_seq_length
    model.eval()  # no dropout
    loss = losses.TripletLoss(model)
    named = list(model.named_parameters())
    free = [parameter for name, parameter in named if name.endswith("bias") or "norm" in name.lower() or "_ln" in name]
    rest = [parameter for _, parameter in named if not any(parameter is each for each in free)]
    groups = [{"params": rest, "weight_decay": ADAMW.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    log = []
    for step, rate in enumerate(learning_rates(ADAMW, STEPS)):
        value = loss([model.preprocess(texts) for texts in columns(step)], torch.empty(0))
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
        log.append((value.item(), norm.item()))
    return log


def test_twenty_steps_of_the_triplet_loss(peers, checkpoint) -> None:
    ours, theirs = our_log(checkpoint), their_log(peers[0], peers[1], checkpoint)
    assert min(loss for loss, _ in theirs) < 0.5 * theirs[0][0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
