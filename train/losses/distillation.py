"""The distillation that stella was trained by: a student takes the place of several teachers."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError
from stella_jax.heads import normalize
from train.losses.common import NO_COLUMNS, Columns, Embeddings, column, counted
from train.losses.mrl import prefixes

BLOCK = 2**22  # comparisons of two pairs that are in memory at once


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
    """Three distances of the student's vectors from the teacher's, over all N texts of the batch, weighted and summed.

    - cosine: 1 - cos(student, teacher), the mean over texts.
    - similarity: the squared difference of the N x N cosines of the student's vectors and of the teacher's.
    - triplet: of any two pairs of texts, the pair that the teacher holds to be nearer should be so to the student by a
      margin: max(0, s_far - s_near + margin), the mean over all twos of the pairs above the diagonal.

    The last two are averaged over prefixes of the student's embeddings, each scaled to unit length; the teacher's are
    whole. The last takes time with the fourth power of N, and a fixed memory.

    Args:
      embeddings: the student's, (B, E) of each of C columns.
      columns: "teacher" (B, E') or (B, C, E'), the concatenation of the normalized vectors of each teacher; rows whose
        "weights" are 0 are left out.
      matryoshka_dims: lengths of the prefixes; none is the whole embedding.
      cosine_weight: 0 leaves the term out, and then the dimensions E and E' may differ.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there is no teacher's vector for each text, or one of another dimension than the student's.

    Reference: Zhang et al. 2024, Jasper and Stella (arXiv:2412.19048), with the constants of the authors' code.
    """
    student, teacher = jnp.stack(embeddings, axis=1), column(columns, "teacher", "stella_distillation")
    B, C, E = student.shape
    teacher = normalize(_of_each_text(teacher, C))
    total = jnp.zeros(B)
    if cosine_weight:
        if teacher.shape[-1] != E:
            raise StellaError(
                f"loss stella_distillation: the teacher's vectors have {teacher.shape[-1]} numbers and the student's "
                f"{E}; train through a head of {teacher.shape[-1]} (new_head.dim), or set cosine_weight = 0."
            )
        total += cosine_weight * jnp.mean(1 - jnp.sum(normalize(student) * teacher, axis=-1), axis=1)
    text = jnp.repeat(counted(columns, B), C)
    expected = _similarities(teacher.reshape(B * C, -1))
    dims = tuple(matryoshka_dims) or (E,)
    for (prefix,) in prefixes((student.reshape(B * C, E),), dims):
        found = _similarities(prefix)
        squares = jnp.sum((found - expected) ** 2 * text[None], axis=1).reshape(B, C)
        total += similarity_weight / len(dims) * jnp.mean(squares, axis=1) / jnp.sum(text)
        if triplet_weight:
            total += triplet_weight / len(dims) * _triplet_term(found, expected, text, margin)
    return total


def _of_each_text(teacher: jax.Array, C: int) -> jax.Array:
    """(B, C, E')."""
    teacher = teacher[:, None] if teacher.ndim == 2 else teacher
    if teacher.ndim != 3 or teacher.shape[1] != C:
        raise StellaError(
            f"loss stella_distillation: the column 'teacher' is of shape {teacher.shape[1:]} a row; give a vector for "
            f"each of its {C} texts, or rows of one text."
        )
    return teacher


def _similarities(vectors: jax.Array) -> jax.Array:
    return jnp.einsum("ne,me->nm", vectors, vectors, precision="highest")


def _triplet_term(found: jax.Array, expected: jax.Array, text: jax.Array, margin: float) -> jax.Array:
    """The mean over all twos of the pairs of texts whose `text` (N,) is 1; `found` and `expected` are (N, N).

    The first of a two is held against all later ones, a block of firsts at a time.
    """
    above = np.triu_indices(len(text), 1)
    P = len(above[0])
    if P < 2:
        return jnp.zeros(())
    counts = text[above[0]] * text[above[1]]
    student, teacher, place = found[above], expected[above], jnp.arange(P)
    block = max(1, min(P, BLOCK // P))

    @partial(jax.checkpoint, prevent_cse=False)
    def hinges(firsts: jax.Array, student: jax.Array) -> jax.Array:
        """The sum over the twos of some firsts, (block,); those beyond P are none."""
        i = jnp.minimum(firsts, P - 1)
        sign = jnp.where(teacher[None] < teacher[i, None], 1.0, -1.0)
        hinge = jax.nn.relu(sign * (student[None] - student[i, None]) + margin)
        is_two = (firsts[:, None] < place[None]) & (counts[i, None] * counts[None] > 0)
        return jnp.sum(jnp.where(is_two, hinge, 0.0))

    firsts = jnp.arange(-(-P // block) * block).reshape(-1, block)
    total, _ = jax.lax.scan(lambda sum, each: (sum + hinges(each, student), None), jnp.zeros(()), firsts)
    pairs = jnp.sum(counts)
    return total / jnp.maximum(pairs * (pairs - 1) / 2, 1.0)
