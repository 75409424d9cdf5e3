"""The losses that bench/train.py measures: ours, and the peer's for the same texts and numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from train import losses

# What a peer's loss is: features of each column, numbers of the further column -> a tensor.
PeerLoss = Callable[[list[Any], Any], Any]


@dataclass(frozen=True)
class Compared:
    """A loss of both.

    Attributes:
      texts: columns of them.
      ours: a function of `train.losses`.
      theirs: sentence-transformers' module of losses, its model and another one as a guide -> the loss.
      further: the name of a further column.
      numbers: how many of it a row has; 0 is one without an axis, -1 as many as an embedding has.
      guided: whether there is a guide.
    """

    texts: int
    ours: losses.Loss
    theirs: Callable[[Any, Any, Any], PeerLoss]
    further: str = ""
    numbers: int = 0
    guided: bool = False


def _stella(_: Any, model: Any, __: Any) -> PeerLoss:
    """The three terms as the authors' code takes them: all twos of the pairs at once, by boolean masks."""
    import torch
    from torch.nn.functional import cosine_embedding_loss, mse_loss, normalize, relu

    def differences(similarities: Any) -> Any:
        pairs = similarities[torch.ones_like(similarities).triu(1).bool()]
        apart = pairs[None] - pairs[:, None]
        return apart[torch.ones_like(apart).triu(1).bool()]

    def loss(features: list[Any], teacher: Any) -> Any:
        student, teacher = model(features[0])["sentence_embedding"], normalize(teacher)
        unit, expected = normalize(student), teacher @ teacher.T
        found = unit @ unit.T
        label = torch.where(differences(expected) < 0, 1, -1)
        triplets = relu(differences(found) * label + 0.015).mean()
        cosine = cosine_embedding_loss(student, teacher, torch.ones(len(student)))
        return 10 * cosine + 200 * mse_loss(found, expected) + 20 * triplets

    return loss


LOSSES = {
    "triplet": Compared(3, losses.triplet, lambda peer, model, _: peer.TripletLoss(model)),
    "multiple_negatives_ranking": Compared(
        3, losses.multiple_negatives_ranking, lambda peer, model, _: peer.MultipleNegativesRankingLoss(model)
    ),
    "matryoshka": Compared(
        3,
        losses.matryoshka(losses.multiple_negatives_ranking, (128, 64, 32)),
        lambda peer, model, _: peer.MatryoshkaLoss(model, peer.MultipleNegativesRankingLoss(model), [128, 64, 32]),
    ),
    "cosent": Compared(2, losses.cosent, lambda peer, model, _: peer.CoSENTLoss(model), "score"),
    "margin_mse": Compared(3, losses.margin_mse, lambda peer, model, _: peer.MarginMSELoss(model), "score", 2),
    "kl_distillation": Compared(
        3, losses.kl_distillation, lambda peer, model, _: peer.DistillKLDivLoss(model), "score", 2
    ),
    "gist_embed": Compared(
        3,
        partial(losses.gist_embed, temperature=0.05),
        lambda peer, model, guide: peer.GISTEmbedLoss(model, guide, temperature=0.05),
        guided=True,
    ),
    "stella_distillation": Compared(1, losses.stella_distillation, _stella, "teacher", -1),
}


def cached(peer: Any, model: Any, rows: int) -> PeerLoss:
    """The peer's ranking loss with so many rows in the encoder at once."""
    return peer.CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows)
