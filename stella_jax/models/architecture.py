"""The record that describes an architecture to the rest of the library."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint.config import EncoderConfig, Rope
from stella_jax.checkpoint.weight_map import Linear, Sizes, WeightSpec
from stella_jax.models.encoder import Encoder

# Axis letter -> the attribute of the config that holds its size; an architecture adds its own.
AXES = {
    "V": "vocab_size",
    "D": "hidden_size",
    "N": "num_attention_heads",
    "H": "head_dim",
    "F": "intermediate_size",
    "L": "num_hidden_layers",
}


@dataclass(frozen=True)
class Scorer:
    """The classes of an architecture that score pairs of texts, from the encoder's state of the first token.

    The score is classifier(tanh(pooler(x))), see `heads.Head`.

    Attributes:
      class_names: as in config.json's `architectures`; the last one is transformers' own.
      pooler: rows of the pooler's tensors, which have the encoder's prefix.
      classifier: rows of the classifier's tensors, which have no prefix.
      native_prefix: the encoder's prefix in a save of transformers' own class.
    """

    class_names: tuple[str, ...]
    pooler: tuple[WeightSpec, ...]
    classifier: tuple[WeightSpec, ...]
    native_prefix: str

    def native_json(self) -> dict[str, Any]:
        """The fields that transformers' own class needs in config.json beside the encoder's."""
        return {
            "architectures": [self.class_names[-1]],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }


@dataclass(frozen=True, eq=False)
class Architecture:
    """An encoder, its weights on disk and how they are sharded; all that loading, converting, jobs and training need.

    Attributes:
      class_names: the model's classes in config.json's `architectures`.
      model_types: accepted values of `model_type` in config.json.
      config: the class that reads config.json; `architecture_of` finds the record by it.
      encoder: (config, *, dtype, param_dtype, rngs) -> Encoder.
      weights: one row per tensor, with the axes on both sides.
      linears: the linear maps of the layers, by the names that adapters use.
      axes: axis letter -> the attribute of the config that holds its size; rows with an axis of size 0 are left out.
      split_axes: the letters of the axes that are split over the mesh's axis `model`.
      prefixes: prefixes that some classes put before the encoder's tensor names.
      passthrough: other tensors of published files, which are kept but not used.
      dropout_rate: dropout of hidden states in training if config.json does not say.
      scorer: the classes that score pairs, if there are any.
    """

    class_names: tuple[str, ...]
    model_types: tuple[str, ...]
    config: type[EncoderConfig]
    encoder: Callable[..., Encoder]
    weights: tuple[WeightSpec, ...]
    linears: Mapping[str, Linear]
    axes: Mapping[str, str]
    split_axes: str
    prefixes: tuple[str, ...] = ()
    passthrough: tuple[str, ...] = ()
    dropout_rate: float = 0.0
    scorer: Scorer | None = None

    def scores(self, class_name: str) -> bool:
        """Whether the class of this name scores pairs of texts."""
        return self.scorer is not None and class_name in self.scorer.class_names

    def sizes(self, config: EncoderConfig) -> Sizes:
        """The size of every axis letter; digits stand for themselves."""
        return {letter: getattr(config, name) for letter, name in self.axes.items()} | {"2": 2, "3": 3}

    def weights_of(self, config: EncoderConfig) -> tuple[WeightSpec, ...]:
        """The rows of a checkpoint with this config."""
        sizes = self.sizes(config)
        return tuple(weight for weight in self.weights if math.prod(weight.flax_shape(sizes)))

    @property
    def split_fields(self) -> tuple[str, ...]:
        """Fields of the config that must be divisible by the mesh's axis `model`."""
        return tuple(self.axes[letter] for letter in self.split_axes)

    @cached_property
    def specs(self) -> dict[str, P]:
        """Partition specs of the parameters that are split over `model`, by name below "encoder/"."""
        specs = {weight.flax: self._spec(weight) for weight in self.weights}
        for name, linear in self.linears.items():
            outputs, inputs = self.weight(linear.kernel).torch_axes.split()
            path = linear.adapter(name).removeprefix("encoder/")
            if self._splits(outputs):
                specs[f"{path}/lora_b"] = P(None, None, "model")  # L R O
            if self._splits(inputs):
                specs[f"{path}/lora_a"] = P(None, "model", None)  # L I R
        return {name: spec for name, spec in specs.items() if "model" in spec}

    def weight(self, name: str) -> WeightSpec:
        """The row of a parameter, such as "encoder/layers/mlp/down/kernel"."""
        return next(weight for weight in self.weights if f"encoder/{weight.flax}" == name)

    def linear_sizes(self, name: str, config: EncoderConfig) -> tuple[int, int]:
        """Inputs and outputs of one of `linears`."""
        outputs, inputs = self.weight(self.linears[name].kernel).torch_axes.split()
        sizes = self.sizes(config)
        return math.prod(sizes[axis] for axis in inputs), math.prod(sizes[axis] for axis in outputs.strip("23"))

    def _spec(self, weight: WeightSpec) -> P:
        layers = (None,) if weight.stacked else ()
        letters = weight.flax_axes.replace(" ", "")
        return P(*layers, *("model" if letter in self.split_axes else None for letter in letters))

    def _splits(self, letters: str) -> bool:
        return any(letter in self.split_axes for letter in letters)


def native_fields(config: EncoderConfig, names: tuple[str, ...], class_name: str, model_type: str) -> dict[str, Any]:
    """Fields that transformers needs in every config.json: the class, and these sizes of the config."""
    return {
        "architectures": [class_name],
        "model_type": model_type,
        **{name: getattr(config, name) for name in names},
        "pad_token_id": config.pad_token_id,
    }


def native_rope(rope: Rope) -> dict[str, Any]:
    """`rope_parameters` as transformers reads them."""
    if rope.divisor == 1:
        return {"rope_type": "default", "rope_theta": rope.theta}
    return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.divisor}
