"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear maps of an encoder's layers, compatible with peft.

An adapter adds (alpha / rank) * B A x to a linear map W x, where A and B have a small rank. Only adapters are trained,
so gradients and optimizer state exist only for them.

Axes: L layers, B batch, T tokens, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stella_jax.checkpoint.weight_map import ALL_LINEAR, Linear
from stella_jax.embedding_model import EmbeddingModel, check_model
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.lora_config import LoraConfig
from stella_jax.models import architecture_of
from stella_jax.models.architecture import Architecture
from stella_jax.models.layers import Dropout, dot, drop
from stella_jax.peft_files import write_adapter
from stella_jax.sharding import make_mesh, param_spec, shard
from stella_jax.storage.new_directory import new_directory

FIRST_INDEX = 3  # number of an adapter's dropout in a layer; the encoder's own use those before


class Adapter(nnx.Module):
    """The addition of an adapter to a linear map's output, (B, T, I) -> (B, T, O); outside the scan, of all layers.

    Args:
      a, b: (L, I, R) and (L, R, O) float32, the transposes of peft's lora_A and lora_B.
      index: number of its dropout in the layer.
      dtype: of the computation.
    """

    def __init__(self, a: jax.Array, b: jax.Array, config: LoraConfig, index: int, dtype: Any):
        self.lora_a, self.lora_b = nnx.LoRAParam(a), nnx.LoRAParam(b)
        self.scale = config.alpha / config.rank
        self.dropout_rate, self.index, self.dtype = config.dropout, index, dtype

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = drop(x.astype(self.dtype), dropout and dropout.with_rate(self.dropout_rate), self.index)
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
    """Adds new adapters, which change nothing until they are trained; all other arrays are shared with the model.

    `make_step` trains only the adapters, unless it is called with other names.

    Args:
      rank: rank of an adapter's two matrices.
      alpha: an adapter's output is multiplied by alpha / rank.
      dropout: rate of dropout on an adapter's inputs in training, independent of the encoder's.
      targets: names of linear maps, such as ("q_proj", "v_proj"), or "all-linear".
      seed: for A, which NumPy draws uniformly from ±1 / sqrt(I); B is 0, as in peft.

    Raises:
      StellaError: as in `LoraConfig`; or the rank is larger than a linear map, or the model already has adapters or is
        not an EmbeddingModel.
    """
    check_model(model)
    architecture = architecture_of(model.encoder.config)
    config = LoraConfig(rank, alpha, dropout, _targeted(architecture, targets))
    if model.encoder.lora:
        raise StellaError("with_lora: the model already has adapters; pass a model as stella_jax.load returns it.")
    params, rng = model.params(), np.random.default_rng(seed)
    adapted = nnx.merge(*nnx.split(model))
    for index, (name, linear) in enumerate(config.linears, FIRST_INDEX):
        sizes = (model.encoder.config.num_hidden_layers, *architecture.linear_sizes(name, model.encoder.config))
        a, b = _first_values(architecture, name, params[linear.kernel], sizes, rank, rng)
        module = getattr(adapted.encoder.layers, linear.module)
        module.lora[name] = Adapter(a, b, config, index, adapted.encoder.dtype)
    adapted.encoder.lora = config
    return adapted


def _targeted(architecture: Architecture, targets: str | Sequence[str]) -> tuple[tuple[str, Linear], ...]:
    """The linear maps of these names, each once."""
    linears = architecture.linears
    single = isinstance(targets, str) or not isinstance(targets, Iterable)
    names: list[Any] = [*linears] if targets == ALL_LINEAR else [targets] if single else [*targets]
    known = f"choose from {join_words(linears)}, or {ALL_LINEAR!r} for all."
    if not names:
        raise StellaError(f"targets: empty; {known}")
    for name in names:
        if name not in [*linears]:  # a list, as what is not a name may have no hash
            raise StellaError(f"targets: unknown linear layer {short_repr(name)}; {known}")
    return tuple((name, linears[name]) for name in dict.fromkeys(names))


def _first_values(
    architecture: Architecture,
    name: str,
    kernel: jax.Array,
    sizes: tuple[int, int, int],
    rank: int,
    rng: np.random.Generator,
) -> tuple[jax.Array, jax.Array]:
    """A and B of a new adapter, on the devices of its linear map's kernel; `sizes` are L, I, O."""
    mesh = getattr(kernel.sharding, "mesh", None) or make_mesh()
    layers, inputs, outputs = sizes
    if rank > min(inputs, outputs):
        raise StellaError(f"rank = {rank}: too large for {name} ({inputs} x {outputs}); choose a lower rank.")
    bound = 1 / math.sqrt(inputs)
    a = rng.uniform(-bound, bound, (layers, inputs, rank)).astype(np.float32)
    b = np.zeros((layers, rank, outputs), np.float32)

    def placed(leaf: str, array: np.ndarray) -> jax.Array:
        path = f"{architecture.linears[name].adapter(name)}/{leaf}"
        return shard(mesh, array, param_spec(architecture.specs, path, array.shape, mesh))

    return placed("lora_a", a), placed("lora_b", b)


def merge_lora(model: EmbeddingModel) -> EmbeddingModel:
    """Merges the adapters into the matrices of their linear maps: the same function, without adapters.

    A model without adapters is returned unchanged.

    Raises:
      StellaError: the model is not an EmbeddingModel.
    """
    check_model(model)
    config = model.encoder.lora
    if config is None:
        return model
    merged = nnx.merge(*nnx.split(model))
    for _, linear in config.linears:
        getattr(merged.encoder.layers, linear.module).lora = nnx.Dict()
    merged.encoder.lora = None
    return merged.with_params(merged_kernels(model.params(), config))


def merged_kernels(params: Mapping[str, jax.Array], config: LoraConfig) -> dict[str, jax.Array]:
    """The kernels that have adapters, by name, with the adapters merged in."""
    found = {name: params[name] for name in kernels(config)}
    for name, linear in config.linears:
        a, b = (params[f"{linear.adapter(name)}/{leaf}"] for leaf in ("lora_a", "lora_b"))
        found[linear.kernel] = _merged(found[linear.kernel], a, b, config.alpha / config.rank, linear.index)
    return found


def kernels(config: LoraConfig) -> list[str]:
    """Names of the kernels that have adapters."""
    return list(dict.fromkeys(linear.kernel for _, linear in config.linears))


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, index: int | None) -> jax.Array:
    """A stacked kernel with an adapter added, in float32; of a kernel that packs several, to the one at `index`."""
    change = scale * jnp.einsum("lir,lro->lio", a, b, precision="highest")
    own = kernel if index is None else kernel[:, :, index]
    added = (own.astype(jnp.float32) + change.reshape(own.shape)).astype(kernel.dtype)
    return added if index is None else kernel.at[:, :, index].set(added)


def save_adapter(model: EmbeddingModel, directory: str | Path) -> None:
    """Writes the adapters into a new directory, in peft's layout.

    `peft.PeftModel.from_pretrained(base, directory)` loads them if base is transformers' own class of the checkpoint
    (`stella-jax convert MODEL DIR --to transformers` writes that); the class of the remote code has other modules. A
    trained head is not included.

    Raises:
      StellaError: the model has no adapters or is not an EmbeddingModel, or the directory exists or cannot be written.
    """
    check_model(model)
    config = model.encoder.lora
    if config is None:
        raise StellaError("save_adapter: the model has no adapters; add them with with_lora.")
    with new_directory(Path(directory), 0) as working:
        write_adapter(model.params(), config, str(model.source or ""), working)
