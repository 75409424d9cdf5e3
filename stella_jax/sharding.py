"""The mesh, and how arrays are sharded over it.

The rows of a batch are split over the axis `data`, and no device needs the rows of another. Tensor parallelism splits
the encoder's attention heads and its MLP's inner axis over `model`; attention and MLP then each end with a sum over it.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.errors import StellaError, join_words, short_repr

AXES = ("data", "model")

BATCH_SPEC = P("data")
REPLICATED = P()


def make_mesh(mesh: Mesh | str | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh from a text such as "data=4,model=2", by default of this process's devices; None is one device.

    A mesh is returned unchanged.

    Raises:
      StellaError: the text has another form, or needs more devices than there are.
    """
    if isinstance(mesh, Mesh):
        return mesh
    if not isinstance(mesh, str | None):
        raise StellaError(
            f"mesh: expected a jax.sharding.Mesh or a text such as 'data=4,model=2', got {short_repr(mesh)}."
        )
    text, sizes, unset = mesh, {"data": 1, "model": 1}, set(AXES)
    for item in text.split(",") if text else []:
        axis, _, size = item.strip().partition("=")
        if axis not in unset or not size.isdecimal() or len(size) > 9 or int(size) < 1:
            raise StellaError(
                f"mesh {short_repr(text)}: not of the form data=4,model=2 with whole numbers from 1 to 999999999."
            )
        sizes[axis] = int(size)
        unset.remove(axis)
    devices, needed = devices or jax.local_devices(), sizes["data"] * sizes["model"]
    if needed > len(devices):
        raise StellaError(
            f"mesh {short_repr(text)}: needs {needed} devices, but there are {len(devices)} ({devices[0].platform})."
        )
    return Mesh(
        np.array(devices[:needed]).reshape(sizes["data"], sizes["model"]), AXES, axis_types=(AxisType.Auto,) * 2
    )


def check_mesh(mesh: Mesh, config: EncoderConfig, split_fields: Sequence[str]) -> None:
    """Refuses a mesh that does not fit this encoder.

    Args:
      split_fields: the config's fields that are split over `model`.

    Raises:
      StellaError: it has other axes or axis types, or the size of `model` does not divide one of the fields.
    """
    if set(mesh.axis_names) != set(AXES):
        raise StellaError(
            f"mesh: the axes must be {AXES}, not {mesh.axis_names}; give an axis that you do not need size 1."
        )
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise StellaError("mesh: the axes are not of type Auto; pass axis_types=(AxisType.Auto,) * 2 to jax.make_mesh.")
    size = mesh.shape["model"]
    odd = [f"{name} {getattr(config, name)}" for name in split_fields if getattr(config, name) % size]
    if odd:
        raise StellaError(f"mesh: model={size} does not divide this encoder's {join_words(odd)}.")


def param_spec(specs: Mapping[str, P], name: str, shape: Sequence[int], mesh: Mesh, fsdp: bool = False) -> P:
    """The partition spec of a parameter, from its architecture's specs.

    With `fsdp`, its longest free axis is split over `data` as well.
    """
    name = name.removeprefix("encoder/")
    spec = specs.get(name, REPLICATED)
    if not fsdp:
        return spec
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    first = 1 if name.startswith("layers/") else 0  # a scan goes through the layers one by one
    free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % mesh.shape["data"] == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = "data"
    return P(*axes)


def shard(mesh: Mesh, array: Any, spec: P = REPLICATED) -> jax.Array:
    """Puts an array on the mesh's devices, each with its own slice."""
    return shard_as(array, NamedSharding(mesh, spec))


def shard_as(array: Any, sharding: Sharding) -> jax.Array:
    """Puts an array on the devices of a sharding; with several processes, each one puts the slices of its devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


def platform() -> str:
    """The platform of the mesh in context, or else of JAX's default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def cuda_generation() -> int:
    """Major compute capability of this process's oldest GPU: 8 is Ampere, 9 Hopper; 0 if one is not from NVIDIA."""
    capabilities = [getattr(device, "compute_capability", "") for device in jax.local_devices(backend="gpu")]
    majors = [str(capability).partition(".")[0] for capability in capabilities]  # AMD's are like gfx942
    return min(int(major) if major.isdecimal() else 0 for major in majors)


def per_device(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Runs (q, k, v, lengths) -> out on each device's own rows and heads; shapes as in `attention.attend`.

    By itself, the compiler would gather everything on every device for a loop over rows or heads. Heads are split over
    `model`, and rows over all other axes of the mesh, if their number is divisible. Without a mesh in context, or
    inside a `jax.shard_map` over the whole mesh, the function is called directly.
    """

    def mapped(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        free = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
        if not free:
            return attend(q, k, v, lengths)
        rows = _dividing(mesh, [axis for axis in free if axis != "model"], q.shape[0])
        heads = _dividing(mesh, [axis for axis in free if axis == "model"], k.shape[2])
        each = P(rows, None, heads, None)
        specs = (each, each, each, P(rows))
        split = jax.shard_map(attend, in_specs=specs, out_specs=each, axis_names={*free}, check_vma=False)
        return split(q, k, v, lengths)

    return mapped


def _dividing(mesh: AbstractMesh, axes: Sequence[str], size: int) -> tuple[str, ...] | None:
    """These axes, or None if their total size does not divide `size`."""
    return tuple(axes) if size % prod(mesh.shape[axis] for axis in axes) == 0 else None
