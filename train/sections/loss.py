"""The table [loss]."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stella_jax.errors import short_repr
from train.sections.fields import number, optional_one_of

# The keys of [loss] that each built-in loss takes: its keyword arguments.
LOSS_KEYS = {
    "triplet": ("distance", "margin"),
    "multiple_negatives_ranking": ("scale", "directions", "partition_mode", "hardness_mode", "hardness_strength"),
    "gist_embed": ("temperature", "margin_strategy", "margin", "contrast_anchors", "contrast_positives"),
    "cosent": ("scale",),
    "margin_mse": ("similarity",),
    "kl_distillation": ("similarity", "temperature"),
    "stella_distillation": ("margin", "cosine_weight", "similarity_weight", "triplet_weight"),
}


@dataclass(frozen=True, slots=True)
class LossSection:
    """The loss. Keys that are None take the loss function's own default, see `train.losses`.

    Attributes:
      name: a built-in loss, one of the functions of `train.losses` except matryoshka; or "my_module:my_loss", your own
        function as described there, from a module in the working directory or an installed one.
      args: keyword arguments of your own function.
      guide: the frozen guide of gist_embed, as in `Stella.from_pretrained`; it must have the model's tokenizer.
      mini_batch: rows that pass the encoder at a time; None is the whole batch. The gradient stays the same; a loss
        that compares rows uses GradCache.
      matryoshka_dims: sum the loss over prefixes of the embedding with these lengths; empty is the whole embedding
        only. stella_distillation averages its last two terms over them.
      matryoshka_weights: weight of each prefix's loss; empty is 1 each.
      distance: of triplet.
      margin: of triplet, gist_embed, stella_distillation.
      margin_strategy: of gist_embed.
      contrast_anchors: of gist_embed.
      contrast_positives: of gist_embed.
      scale: of multiple_negatives_ranking and cosent.
      directions: of multiple_negatives_ranking.
      partition_mode: of multiple_negatives_ranking.
      hardness_mode: of multiple_negatives_ranking.
      hardness_strength: of multiple_negatives_ranking.
      similarity: of margin_mse and kl_distillation.
      temperature: of gist_embed and kl_distillation.
      cosine_weight: weight of the term `cosine` of stella_distillation.
      similarity_weight: weight of its term `similarity`.
      triplet_weight: weight of its term `triplet`.
    """

    name: str = "triplet"
    args: dict[str, Any] = field(default_factory=dict)
    guide: str | None = None
    mini_batch: int | None = number(None, least=1)
    matryoshka_dims: tuple[int, ...] = number((), least=1)
    matryoshka_weights: tuple[float, ...] = number((), least=0)
    distance: str | None = optional_one_of("euclidean", "cosine", "manhattan")
    margin: float | None = number(None, least=0)
    margin_strategy: str | None = optional_one_of("absolute", "relative")
    contrast_anchors: bool | None = None
    contrast_positives: bool | None = None
    scale: float | None = number(None, above=0)
    directions: tuple[str, ...] | None = optional_one_of("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    partition_mode: str | None = optional_one_of("joint", "per_direction")
    hardness_mode: str | None = optional_one_of("in_batch_negatives", "hard_negatives", "all_negatives")
    hardness_strength: float | None = number(None, least=0)
    similarity: str | None = optional_one_of("dot", "cosine")
    temperature: float | None = number(None, above=0)
    cosine_weight: float | None = number(None, least=0)
    similarity_weight: float | None = number(None, least=0)
    triplet_weight: float | None = number(None, least=0)

    def arguments(self) -> dict[str, Any]:
        """The given keyword arguments of the loss."""
        given = {key: getattr(self, key) for key in LOSS_KEYS.get(self.name, ())}
        return {key: value for key, value in given.items() if value is not None} | self.args

    def conflicts(self) -> Iterator[str]:
        """Conflicts between its keys, a sentence each."""
        own, name = ":" in self.name, short_repr(self.name)
        for key in dict.fromkeys(key for keys in LOSS_KEYS.values() for key in keys):
            if getattr(self, key) is None or key in LOSS_KEYS.get(self.name, ()):
                continue
            if own:
                yield f"loss.{key} is for a built-in loss; pass it to {name} as loss.args.{key}, or remove it"
            elif key not in ("distance", "margin", "scale"):  # these may stay when the name is overridden
                names = " or ".join(repr(each) for each, keys in LOSS_KEYS.items() if key in keys)
                yield f"loss.{key} is for loss.name = {names}, not {name}; remove it"
        if self.args and not own:
            yield f'loss.args is for a function of your own, loss.name = "my_module:my_loss", not {name}; remove it'
        if self.name == "gist_embed" and not self.guide:
            yield "loss.name = 'gist_embed' needs a guide; name a checkpoint in loss.guide"
        if self.guide and not own and self.name != "gist_embed":
            yield f"loss.guide is for loss.name = 'gist_embed' or a function of your own, not {name}; remove it"
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if weights and len(weights) != len(dims):
            yield (
                f"loss.matryoshka_weights has {len(weights)} numbers for {len(dims)} loss.matryoshka_dims; "
                "give each dim one weight"
            )
        if weights and self.name == "stella_distillation":
            yield f"loss.matryoshka_weights is not supported by {name}, which weighs all prefixes alike; remove it"
