"""Loads the model of a finished job."""

from collections.abc import Sequence
from typing import Any

from stella_jax.checkpoint.fingerprint import fingerprint
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.output_columns import has_scores
from stella_jax.pretrained import PretrainedModel
from stella_jax.reranker import Reranker
from stella_jax.storage.store import Store


def load_model(
    store: Store, manifest: dict[str, Any], dims: Sequence[int], name: str | None, revision: str | None
) -> PretrainedModel:
    """The model that the manifest names, or the same model from elsewhere, with its own `max_seq_length`.

    Args:
      dims: of the heads to load.
      name: where to load it from instead, at `revision`.

    Raises:
      StellaError: it is not the model of the job; says what differs.
    """
    revision = revision if name else manifest["revision"]
    name = str(name or manifest["model"])
    options: dict[str, Any] = {"dtype": manifest["dtype"], "revision": revision}
    if has_scores(manifest["fingerprint"]):
        model = Reranker.from_pretrained(name, **options)
    else:
        model = Stella.from_pretrained(name, dim=tuple(dims), **options)
    check_model(store, manifest, model, name)
    return model


def check_model(store: Store, manifest: dict[str, Any], model: PretrainedModel, name: str) -> None:
    """Raises StellaError if the model is not the model of the job; says what differs."""
    before, now = manifest["fingerprint"]["model"], fingerprint(model.checkpoint, model.heads)
    before |= {"heads": {dim: value for dim, value in before["heads"].items() if dim in now["heads"]}}
    changed = [part for part in before | now if before.get(part) != now.get(part)]
    if changed:
        raise StellaError(
            f"{name}: not the model of the job in {store} (different: {', '.join(changed)}); use the job's model."
        )
