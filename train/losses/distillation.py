"""The distillation loss that stella was trained with: one student learns from several teachers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError
from stella_jax.models.heads import normalize
from train.losses.common import NO_COLUMNS, Columns, Embeddings, column, counted
from train.losses.mrl import prefixes

BLOCK = 32  # pairs that are compared directly
FAR = 1e9  # above any similarity, and so large that adding a margin does not change it


def stella_distillation(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    matryoshka_dims: Sequence[int] = (),
    margin: float = 0.015,
    cosine_weight: float = 10.0,
    similarity_weight: float = 200.0,
    triplet_weight: float = 20.0,
) -> jax.Array:
    """The weighted sum of three losses between student and teacher vectors, over all N texts of the batch.

    - cosine: 1 - cos(student, teacher), averaged over texts.
    - similarity: the squared difference of the student's and the teacher's N x N cosine matrices.
    - triplet: max(0, s_far - s_near + margin), averaged over all pairs of text pairs (above the diagonal), where s is
      the student's cosine, and near and far are ordered by the teacher's.

    The last two are averaged over normalized prefixes of the student's embeddings; the teacher's are used whole. Memory
    is O(N^2), time O(N^2) up to logarithms.

    Args:
      embeddings: the student's, (B, E) of each of C columns.
      columns: "teacher" (B, E') or (B, C, E'), the concatenation of the normalized vectors of each teacher; rows whose
        "weights" are 0 are skipped.
      matryoshka_dims: lengths of the prefixes; empty is the whole embedding.
      margin: of the triplet term.
      cosine_weight: 0 leaves the term out; E and E' may then differ.
      similarity_weight: weight of the similarity term.
      triplet_weight: weight of the triplet term.

    Returns:
      (B,) float32.

    Raises:
      StellaError: a text has no teacher vector, or E' differs from E.

    Reference: Zhang et al. 2024, Jasper and Stella (arXiv:2412.19048), with the constants of the authors' code.
    """
    student, teacher = jnp.stack(embeddings, axis=1), column(columns, "teacher", "stella_distillation")
    B, C, E = student.shape
    teacher = normalize(_of_each_text(teacher, C))
    total = jnp.zeros(B)
    if cosine_weight:
        if teacher.shape[-1] != E:
            raise StellaError(
                f"loss stella_distillation: teacher vectors have {teacher.shape[-1]} dimensions, the student's {E}; "
                f"train a head of {teacher.shape[-1]} dimensions (new_head.dim), or set cosine_weight = 0."
            )
        total += cosine_weight * jnp.mean(1 - jnp.sum(normalize(student) * teacher, axis=-1), axis=1)
    text = jnp.repeat(counted(columns, B), C)
    expected = _similarities(teacher.reshape(B * C, -1))
    dims = tuple(matryoshka_dims) or (E,)
    found = jnp.stack([_similarities(prefix) for (prefix,) in prefixes((student.reshape(B * C, E),), dims)])
    squares = jnp.mean(jnp.sum((found - expected[None]) ** 2 * text[None, None], axis=2), axis=0).reshape(B, C)
    total += similarity_weight * jnp.mean(squares, axis=1) / jnp.sum(text)
    if triplet_weight:
        terms = jax.vmap(lambda each: _triplet_term(each, expected, text, margin))(found)
        total += triplet_weight * jnp.mean(terms)
    return total


def _of_each_text(teacher: jax.Array, C: int) -> jax.Array:
    """(B, C, E')."""
    teacher = teacher[:, None] if teacher.ndim == 2 else teacher
    if teacher.ndim != 3 or teacher.shape[1] != C:
        raise StellaError(
            f"loss stella_distillation: the column 'teacher' has shape {teacher.shape[1:]} per row; give a vector for "
            f"each of its {C} texts, or rows of one text."
        )
    return teacher


def _similarities(vectors: jax.Array) -> jax.Array:
    return jnp.einsum("ne,me->nm", vectors, vectors, precision="highest")


def _triplet_term(found: jax.Array, expected: jax.Array, text: jax.Array, margin: float) -> jax.Array:
    """The mean hinge over all pairs of text pairs.

    Text pairs are sorted by the teacher's similarity, ascending; the student's should be ascending too.

    Args:
      found: (N, N) similarities of the student.
      expected: (N, N) similarities of the teacher.
      text: (N,) 1 for a text, 0 for padding.
      margin: of the hinge.
    """
    if len(text) < 2:
        return jnp.zeros(())
    above = np.triu_indices(len(text), 1)
    counts = text[above[0]] * text[above[1]] > 0
    pairs = jnp.sum(counts.astype(jnp.float32))
    # A stable sort: of equal ones the first in the matrix is the farther, as in the authors' code. Padding comes last.
    order = jnp.argsort(jnp.where(counts, expected[above], jnp.inf), stable=True)
    similarities = found[above]
    center = jax.lax.stop_gradient(jnp.mean(similarities))  # so that sums of them are small
    ordered = jnp.where(counts, similarities - center, FAR)[order]
    return _hinges(ordered, counts[order], margin) / jnp.maximum(pairs * (pairs - 1) / 2, 1.0)


def _hinges(s: jax.Array, counts: jax.Array, margin: float) -> jax.Array:
    """The sum of max(0, s_i - s_j + margin) over all i < j, for s (P,) that are FAR where `counts` is false.

    Within blocks it is computed directly. Then, for blocks of twice, four times ... the size, the later half is sorted,
    so that the j with a positive hinge for an i are a prefix of it: O(P (log P)^2) instead of O(P^2).
    """
    size = 1 << max((BLOCK - 1).bit_length(), (len(s) - 1).bit_length())
    s = jnp.pad(s, (0, size - len(s)), constant_values=FAR)
    counts = jnp.pad(counts, (0, size - len(counts)))
    blocks = s.reshape(-1, BLOCK)
    is_pair = np.triu(np.ones((BLOCK, BLOCK), bool), 1)[None] & counts.reshape(-1, BLOCK, 1)
    total = jnp.sum(jnp.where(is_pair, jax.nn.relu(blocks[:, :, None] - blocks[:, None] + margin), 0.0))
    width = BLOCK
    while width < size:
        earlier, later = jnp.moveaxis(s.reshape(-1, 2, width), 1, 0)
        later = jnp.sort(later, axis=1)
        near = jax.vmap(jnp.searchsorted)(later, earlier + margin)
        sums = jnp.pad(jnp.cumsum(later, axis=1), ((0, 0), (1, 0)))
        hinges = near * (earlier + margin) - jnp.take_along_axis(sums, near, axis=1)
        total += jnp.sum(jnp.where(counts.reshape(-1, 2, width)[:, 0], hinges, 0.0))
        width *= 2
    return total
