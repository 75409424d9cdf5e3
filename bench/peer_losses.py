"""Losses for bench/train.py: ours, and the peer's counterparts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from train import losses

# (features of each column of texts, values of the further column) -> loss.
PeerLoss = Callable[[list[Any], Any], Any]


@dataclass(frozen=True)
class Compared:
    """A loss in both libraries.

    Attributes:
      texts: number of columns of texts.
      ours: a function of `train.losses`.
      theirs: (sentence-transformers' module of losses, model, guide) -> the loss.
      further: name of a further column.
      numbers: values of it per row; 0 is a scalar, -1 the embedding dimension.
      guided: whether the loss needs a guide.
    """

    texts: int
    ours: losses.Loss
    theirs: Callable[[Any, Any, Any], PeerLoss]
    further: str = ""
    numbers: int = 0
    guided: bool = False


def _stella(_: Any, model: Any, __: Any) -> PeerLoss:
    """The three terms as in the authors' code, with all pairs of text pairs at once."""
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
    """The peer's ranking loss with GradCache, `rows` at a time in the encoder."""
    return peer.CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows)
