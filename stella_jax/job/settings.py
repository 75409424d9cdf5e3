"""What a job's output depends on, and how a rerun with anything of it changed is refused."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax

from stella_jax import __version__
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.fingerprint import fingerprint
from stella_jax.job.rows import Fields
from stella_jax.job.store import Store

# Rows in a part. A part is what a kill can cost, and its last batch of each length is half empty: on a CPU, with small
# batches, parts can be small (the 434M encoder takes half an hour for one); elsewhere only large ones fill batches.
PART_ROWS = {"cpu": 2048}
DEFAULT_PART_ROWS = 65_536

HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose about a job, apart from the model.

    Attributes:
      prompt: the text itself, put before every text.
      normalize: whether embeddings are scaled to unit length.
      part_rows: records in a part.
    """

    fields: Fields
    prompt: str
    normalize: bool
    part_rows: int


def default_part_rows() -> int:
    return PART_ROWS.get(jax.default_backend(), DEFAULT_PART_ROWS)


def fingerprint_of(model: Stella, settings: Settings) -> dict[str, Any]:
    """Everything but the inputs that the bytes of the output follow from, as JSON values."""
    return {
        "dims": list(model.runner.dims),
        "dtype": model.dtype,
        "max_seq_length": model.max_seq_length,
        "prompt": settings.prompt,
        "normalize": settings.normalize,
        "text_field": settings.fields.text,
        "id_field": settings.fields.id,
        "part_rows": settings.part_rows,
        "model": fingerprint(model.checkpoint, model.heads),
        "platform": model.platform,
        "model_axis": model.mesh.shape["model"],  # of the mesh; the other axis leaves the bits as they are
        "versions": {"stella_jax": __version__} | {name: version(name) for name in ("jax", "tokenizers", "pyarrow")},
    }


def settings_of(fingerprint: dict[str, Any]) -> Settings:
    """The settings that a job was begun with."""
    fields = Fields(fingerprint["text_field"], fingerprint["id_field"])
    return Settings(fields, fingerprint["prompt"], fingerprint["normalize"], fingerprint["part_rows"])


def check_same(store: Store, before: Any, now: dict[str, Any]) -> None:
    """Refuses to go on with a job of another fingerprint.

    Raises:
      StellaError: names every difference.
    """
    found = list(differences(before, now))
    if found:
        changed = "; ".join(found)
        raise StellaError(f"{store} was begun with other settings or inputs: {changed}. Choose another directory.")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two fingerprints differ, in words: "dim was 64, is 32"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{name}[{i}]")
    elif before != now:
        yield f"{name} was {_shown(before)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    """A value in an error: a list by its names, a hash by its start."""
    if isinstance(value, list):
        names = [str(item["name"] if isinstance(item, dict) else item) for item in value]
        return f"{len(value)} ({', '.join(names[:3])}{', ...' if len(value) > 3 else ''})"
    if isinstance(value, str) and HASH.fullmatch(value):
        return value[:12]
    return "nothing" if value is None else repr(value)
