"""Runs a model on a mesh: groups of tokenized texts in, their embeddings out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from stella_jax.batching import Batch, Packer, pad
from stella_jax.compile_ahead import CompileAhead, Shape
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.models.layerwise import LayerByLayer
from stella_jax.sharding import BATCH_SPEC, shard
from stella_jax.tokenizer.tokenizer import Tokens

# Tokens per batch. On CPU a row or two are already efficient, and a short batch should cost little; other platforms
# need enough to fill a chip.
TOKEN_BUDGET = {"cpu": 256}
DEFAULT_TOKEN_BUDGET = 16_384

# In jax 0.10, XLA on CPU takes a layer out of a bfloat16 stack through float32, and this pass would convert the whole
# stack before every batch: two to three times the time, and twice the layers' memory.
CPU_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

# Batches in flight: the host pads the next one while the device computes.
IN_FLIGHT = 2

# Called with each batch once its results are on the host.
OnBatch = Callable[[Batch], object]


@partial(jax.jit, static_argnames="graphdef")
def last_hidden(graphdef: nnx.GraphDef, state: nnx.State, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    """`EmbeddingModel.last_hidden` of a split model."""
    return nnx.merge(graphdef, state).last_hidden(ids, lengths)


last_hidden_on_cpu = jax.jit(last_hidden, static_argnames="graphdef", compiler_options=CPU_OPTIONS)


@partial(jax.jit, static_argnames="graphdef")
def embeddings(
    graphdef: nnx.GraphDef, state: nnx.State, hidden: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, ...]:
    """`EmbeddingModel.embeddings` of a split model."""
    return nnx.merge(graphdef, state).embeddings(hidden, lengths)


class Runner:
    """Keeps the mesh's devices busy with batches of fixed shapes; `dims` are the dimensions of the model's heads.

    Args:
      model: on the mesh; its arrays must not change while the runner is used.
      pad_id: the token id of padding.
      layer_by_layer: on a CPU, run the layers one by one, which is fastest for a model that stays in use.
    """

    def __init__(self, model: EmbeddingModel, mesh: Mesh, pad_id: int, layer_by_layer: bool = True):
        self.mesh = mesh
        self.dims = model.dims
        # Without its source, so that models of the same shape share programs.
        self.graphdef, self.state = nnx.split(model.without_source())
        platform = mesh.devices.flat[0].platform
        self.token_budget = TOKEN_BUDGET.get(platform, DEFAULT_TOKEN_BUDGET)
        self._pad_id = pad_id
        self._last_hidden = last_hidden_on_cpu if platform == "cpu" else last_hidden
        self._encode: Callable[[jax.Array, jax.Array], jax.Array]
        self._encode = partial(self._last_hidden, self.graphdef, self.state)
        self._ahead: CompileAhead | None = None
        if platform == "cpu" and mesh.size == 1 and layer_by_layer:
            self._encode = LayerByLayer(model.encoder, mesh)
        else:
            self._ahead = CompileAhead(self._compile)

    def forward(self, ids: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
        """Each head's embeddings (B, E) float32, from ids (B, T) and lengths (B,) on the mesh."""
        if self._ahead:
            self._ahead.wait((ids.shape[0], ids.shape[1]))
        return embeddings(self.graphdef, self.state, self._encode(ids, lengths), lengths)

    def _compile(self, shape: Shape) -> None:
        """Compiles the programs of `forward`, which then finds them in the cache of `jax.jit`."""
        split = NamedSharding(self.mesh, BATCH_SPEC)
        ids, lengths = (jax.ShapeDtypeStruct(dims, jnp.int32, sharding=split) for dims in (shape, shape[:1]))
        with jax.set_mesh(self.mesh):
            lowered = self._last_hidden.lower(self.graphdef, self.state, ids, lengths)
            sharding, hidden = lowered.compile().output_shardings, lowered.out_info
            hidden = jax.ShapeDtypeStruct(hidden.shape, hidden.dtype, sharding=sharding)
            embeddings.lower(self.graphdef, self.state, hidden, lengths).compile()

    def stream(
        self,
        groups: Iterable[Sequence[Tokens]],
        max_length: int,
        max_batch_rows: int | None = None,
        on_batch: OnBatch | None = None,
        open_texts: int = 0,
    ) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Embeds groups of texts as they arrive; at most two are open at a time, or more if they are small.

        Args:
          max_length: maximum number of tokens of a text.
          max_batch_rows: maximum number of rows of a batch on a device.
          on_batch: called with each batch once its results are on the host.
          open_texts: how many texts of later groups a group may wait for, to fill its batches.

        Yields:
          (number of the group, its embeddings [n, dim] float32 for each head), in the order in which groups finish.
        """
        opened: dict[int, _Group] = {}
        packer = self._packer(max_length, max_batch_rows)
        coming = (_Group(tokens, self.dims) for tokens in self._compiling(groups, packer))
        try:
            for batch, results in self._results(self.forward, coming, opened, packer, on_batch, open_texts):
                for row, (group, number) in enumerate(batch.texts):
                    opened[group].put(number, [result[row] for result in results])
                yield from _finished(opened)
            yield from _finished(opened)
        finally:
            if self._ahead:
                self._ahead.cancel()

    def token_embeddings(
        self,
        tokens: Sequence[Tokens],
        max_length: int,
        max_batch_rows: int | None = None,
        on_batch: OnBatch | None = None,
    ) -> list[np.ndarray]:
        """The encoder's vectors [tokens, hidden_size] float32 of each text; arguments as in `stream`."""
        found: list[np.ndarray] = [np.empty(0)] * len(tokens)
        packer = self._packer(max_length, max_batch_rows)
        for batch, states in self._results(self._encode, [_Group(tokens, ())], {}, packer, on_batch):
            for row, (_, number) in enumerate(batch.texts):
                found[number] = states[row, : len(tokens[number].ids)].copy()
        return found

    def _packer(self, max_length: int, max_batch_rows: int | None) -> Packer:
        return Packer(max_length, self.token_budget, max_batch_rows, self.mesh.shape["data"])

    def _compiling(self, groups: Iterable[Sequence[Tokens]], packer: Packer) -> Iterator[Sequence[Tokens]]:
        """Passes the groups on, and starts compiling the programs that each one needs."""
        for tokens in groups:
            if self._ahead:
                self._ahead.start(packer.shapes([len(text.ids) for text in tokens]))
            yield tokens

    def _results(
        self,
        forward: Callable[[jax.Array, jax.Array], Any],
        groups: "Iterable[_Group]",
        opened: "dict[int, _Group]",
        packer: Packer,
        on_batch: OnBatch | None,
        open_texts: int = 0,
    ) -> Iterator[tuple[Batch, Any]]:
        """Sends every batch through `forward`, a few batches ahead of the results that it yields."""
        sent: deque[tuple[Batch, Any]] = deque()
        for batch in _batches(groups, opened, packer, open_texts):
            token_ids = [opened[group].tokens[number].ids for group, number in batch.texts]
            ids, lengths = (shard(self.mesh, x, BATCH_SPEC) for x in pad(token_ids, batch, self._pad_id))
            with jax.set_mesh(self.mesh):
                sent.append((batch, forward(ids, lengths)))
            if len(sent) > IN_FLIGHT:
                yield _fetch(*sent.popleft(), on_batch)
        while sent:
            yield _fetch(*sent.popleft(), on_batch)


class _Group:
    """A group of texts in progress: tokens, embeddings so far, and the number of texts left."""

    def __init__(self, tokens: Sequence[Tokens], dims: Sequence[int]):
        self.tokens = tokens
        self.found = tuple(np.empty((len(tokens), dim), dtype=np.float32) for dim in dims)
        self.left = len(tokens)

    def put(self, number: int, rows: Sequence[np.ndarray]) -> None:
        for found, row in zip(self.found, rows, strict=True):
            found[number] = row
        self.left -= 1


def _batches(groups: Iterable[_Group], opened: dict[int, _Group], packer: Packer, open_texts: int) -> Iterator[Batch]:
    """Opens one group after the other and packs batches; a group's last texts may wait for the next groups."""
    last, waiting = -1, deque[int]()  # number of texts of each group that may have waiting ones
    for last, group in enumerate(groups):
        opened[last] = group
        yield from packer.add(last, [len(text.ids) for text in group.tokens])
        waiting.append(len(group.tokens))
        while len(waiting) > 1 and sum(waiting) - waiting[0] >= open_texts:
            waiting.popleft()
        yield from packer.flush(last - len(waiting))
    yield from packer.flush(last)


def _finished(opened: dict[int, _Group]) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Removes and yields the groups that are finished."""
    for number in [number for number, group in opened.items() if not group.left]:
        yield number, opened.pop(number).found


def _fetch(batch: Batch, results: Any, on_batch: OnBatch | None) -> tuple[Batch, Any]:
    fetched = jax.tree.map(np.asarray, results)
    if on_batch:
        on_batch(batch)
    return batch, fetched
