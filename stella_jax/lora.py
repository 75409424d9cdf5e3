"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear maps of an encoder's layers, as peft has them.

An adapter adds (alpha / rank) * B A x to a linear map W x, with A and B of a small rank. Only adapters train, so that
gradients and optimizer state exist for them alone.

Axes: L layers, B batch, T tokens, I inputs, O outputs, R rank.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models import architecture_of
from stella_jax.models.architecture import Architecture
from stella_jax.models.layers import Dropout, dot, drop
from stella_jax.sharding import make_mesh, param_spec, shard
from stella_jax.storage.new_directory import new_directory
from stella_jax.weight_map import ALL_LINEAR, Linear

FIRST_PLACE = 3  # of dropout within a layer: the encoder's own has those before


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What adapters are.

    Attributes:
      rank: R.
      alpha: the sum of the adapter is multiplied by alpha / rank.
      dropout: share of the adapter's inputs that are zeroed in training; its own, whatever the encoder's.
      linears: the linear maps of every layer that get one, by the names of transformers' class.

    Raises:
      StellaError: a value is impossible.
    """

    rank: int
    alpha: float
    dropout: float
    linears: tuple[tuple[str, Linear], ...]

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("rank", _is_number(self.rank, int) and self.rank >= 1, "a whole number of at least 1"),
            ("alpha", _is_number(self.alpha) and self.alpha > 0, "a finite number above 0"),
            ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "a number from 0 to below 1"),
        ):
            if not fits:
                raise StellaError(f"lora.{name} = {short_repr(getattr(self, name))}: pass {what}.")


class Adapter(nnx.Module):
    """(B, T, I) -> (B, T, O): what an adapter adds to a linear map's output; of all layers, stacked, until scanned.

    Args:
      a, b: (L, I, R) and (L, R, O) float32, the transposes of peft's lora_A and lora_B.
      place: of its dropout among the others of a layer.
      dtype: what is computed in.
    """

    def __init__(self, a: jax.Array, b: jax.Array, config: LoraConfig, place: int, dtype: Any):
        self.lora_a, self.lora_b = nnx.LoRAParam(a), nnx.LoRAParam(b)
        self.scale = config.alpha / config.rank
        self.dropout_rate, self.place, self.dtype = config.dropout, place, dtype

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = drop(x.astype(self.dtype), dropout and dropout.with_rate(self.dropout_rate), self.place)
        a, b = self.lora_a[...].astype(self.dtype), self.lora_b[...].astype(self.dtype)
        contract = (((2,), (0,)), ((), ()))
        return dot(dot(x, a, contract), b, contract) * jnp.asarray(self.scale, self.dtype)


def with_lora(
    model: EmbeddingModel,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    dropout: float = 0.0,
    targets: str | Sequence[str] = ALL_LINEAR,
    seed: int = 0,
) -> EmbeddingModel:
    """The model with new adapters, which change nothing until they are trained; it shares all other arrays.

    `make_step` trains the adapters only, unless it is called with other names.

    Args:
      rank: of the two small matrices of an adapter.
      alpha: what an adapter adds is multiplied by alpha / rank.
      dropout: share of an adapter's inputs that are zeroed in training, whatever the encoder's own dropout.
      targets: names of linear maps, such as ("q_proj", "v_proj"), or "all-linear".
      seed: A is uniform up to 1 / sqrt(I), drawn by NumPy; B is 0, as in peft.

    Raises:
      StellaError: as in `LoraConfig`; or the rank is above the size of a map, or the model has adapters already.
    """
    architecture = architecture_of(model.encoder.config)
    config = LoraConfig(rank, alpha, dropout, _targeted(architecture, targets))
    if model.encoder.lora:
        raise StellaError("with_lora: the model has adapters already; pass it without, as stella_jax.load returns it.")
    params, rng = model.params(), np.random.default_rng(seed)
    adapted = nnx.merge(*nnx.split(model))
    for place, (name, linear) in enumerate(config.linears, FIRST_PLACE):
        sizes = (model.encoder.config.num_hidden_layers, *architecture.linear_sizes(name, model.encoder.config))
        a, b = _first_values(architecture, name, params[linear.kernel], sizes, rank, rng)
        module = getattr(adapted.encoder.layers, linear.module)
        module.lora[name] = Adapter(a, b, config, place, adapted.encoder.dtype)
    adapted.encoder.lora = config
    return adapted


def _targeted(architecture: Architecture, targets: str | Sequence[str]) -> tuple[tuple[str, Linear], ...]:
    """The linear maps that are named, each once."""
    linears = architecture.linears
    names = linears if targets == ALL_LINEAR else (targets,) if isinstance(targets, str) else targets
    known = f"choose from {join_words(linears)}, or {ALL_LINEAR!r} for all of them."
    if not names:
        raise StellaError(f"lora.targets: no layer is named; {known}")
    for name in names:
        if name not in linears:
            raise StellaError(f"lora.targets: {short_repr(name)} matches no linear layer; {known}")
    return tuple((name, linears[name]) for name in dict.fromkeys(names))


def _first_values(
    architecture: Architecture,
    name: str,
    kernel: jax.Array,
    sizes: tuple[int, int, int],
    rank: int,
    rng: np.random.Generator,
) -> tuple[jax.Array, jax.Array]:
    """A and B of a new adapter, on the devices of the kernel of its linear map; `sizes` are L, I, O."""
    mesh = getattr(kernel.sharding, "mesh", None) or make_mesh()
    layers, inputs, outputs = sizes
    if rank > min(inputs, outputs):
        raise StellaError(f"lora.rank = {rank}: {name} is a matrix of {inputs} x {outputs}; choose a lower rank.")
    bound = 1 / math.sqrt(inputs)
    a = rng.uniform(-bound, bound, (layers, inputs, rank)).astype(np.float32)
    b = np.zeros((layers, rank, outputs), np.float32)

    def placed(leaf: str, array: np.ndarray) -> jax.Array:
        path = f"{architecture.linears[name].adapter(name)}/{leaf}"
        return shard(mesh, array, param_spec(architecture.specs, path, array.shape, mesh))

    return placed("lora_a", a), placed("lora_b", b)


def merge_lora(model: EmbeddingModel) -> EmbeddingModel:
    """The model without adapters that computes the same: each is added to the matrix of its linear map.

    A model without adapters is returned as it is.
    """
    config = model.encoder.lora
    if config is None:
        return model
    merged = nnx.merge(*nnx.split(model))
    for _, linear in config.linears:
        getattr(merged.encoder.layers, linear.module).lora = nnx.Dict()
    merged.encoder.lora = None
    return merged.with_params(merged_kernels(model.params(), config))


def merged_kernels(params: Mapping[str, jax.Array], config: LoraConfig) -> dict[str, jax.Array]:
    """The kernels that adapters change, by name, with these added."""
    found = {name: params[name] for name in kernels(config)}
    for name, linear in config.linears:
        a, b = (params[f"{linear.adapter(name)}/{leaf}"] for leaf in ("lora_a", "lora_b"))
        found[linear.kernel] = _merged(found[linear.kernel], a, b, config.alpha / config.rank, linear.index)
    return found


def kernels(config: LoraConfig) -> list[str]:
    """Names of the kernels that adapters change."""
    return list(dict.fromkeys(linear.kernel for _, linear in config.linears))


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, index: int | None) -> jax.Array:
    """A stacked kernel, or a part of one that holds several, with an adapter added in float32."""
    change = scale * jnp.einsum("lir,lro->lio", a, b, precision="highest")
    if index is None:
        return kernel + change.reshape(kernel.shape).astype(kernel.dtype)
    part = kernel[:, :, index]
    return kernel.at[:, :, index].add(change.reshape(part.shape).astype(kernel.dtype))


def save_adapter(model: EmbeddingModel, directory: str | Path) -> None:
    """Writes the adapters into a new directory, in peft's layout.

    `peft.PeftModel.from_pretrained(base, directory)` loads them, where the base is transformers' own class of the
    checkpoint (`stella-jax convert MODEL DIR --to transformers` writes it). The class of the remote code has other
    modules, which they do not fit. A trained head is not in it.

    Raises:
      StellaError: the model has no adapters, or the directory exists or cannot be written.
    """
    config = model.encoder.lora
    if config is None:
        raise StellaError("save_adapter: the model has no adapters; with_lora adds them.")
    with new_directory(Path(directory), 0) as working:
        write_adapter(model.params(), config, str(model.source or ""), working)


def write_adapter(params: Mapping[str, jax.Array], config: LoraConfig, base: str, directory: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      base: path or repo id of the checkpoint that was adapted, for peft's information.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for name, linear in config.linears:
        for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            stacked = np.asarray(params[f"{linear.adapter(name)}/{leaf}"], np.float32)
            for layer, matrix in enumerate(stacked):
                key = f"base_model.model.{linear.torch.format(i=layer)}.{name}.{theirs}.weight"
                tensors[key] = np.ascontiguousarray(matrix.T)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [name for name, _ in config.linears],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    text = json.dumps(fields, indent=2) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
