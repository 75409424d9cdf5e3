"""What a user asked of `embed`, before any of it is looked at; any process can act on it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stella_jax.devices import all_accelerators, start_jax
from stella_jax.embedder import Stella
from stella_jax.job.location import locate
from stella_jax.job.rows import Fields
from stella_jax.job.settings import Settings, default_part_rows


@dataclass(frozen=True, slots=True)
class Request:
    """The options; None is the default of the checkpoint or of the platform.

    Attributes:
      dim: of the head, or of several.
      prompt: its name, or "none".
      max_rejected: share of the rows.
    """

    model: str
    revision: str | None
    dim: int | tuple[int, ...] | None
    dtype: str | None
    mesh: str | None
    max_length: int | None
    fields: Fields
    prompt: str | None
    normalize: bool
    part_rows: int | None
    inputs: tuple[str, ...]
    out: str
    max_rejected: float

    def load(self) -> Stella:
        """Starts JAX and loads the model."""
        start_jax()
        model = Stella.from_pretrained(self.model, self.dim, self.dtype, self.mesh or all_accelerators(), self.revision)
        if self.max_length:
            model.max_seq_length = self.max_length
        return model

    def settings(self, model: Stella) -> Settings:
        prompt = resolve_prompt(model, self.prompt) if self.prompt else model.prompts.get("document", "")
        return Settings(self.fields, prompt, self.normalize, self.part_rows or default_part_rows())

    @property
    def origin(self) -> dict[str, Any]:
        """Where the model comes from, for the manifest."""
        return {"model": lasting(self.model), "revision": self.revision}

    def absolute(self) -> "Request":
        """The same request for a process in another working directory."""
        inputs = tuple(_absolute(text) for text in self.inputs)
        return replace(self, inputs=inputs, out=_absolute(self.out), model=lasting(self.model))


def _absolute(text: str) -> str:
    location = locate(text)
    return str(location) if location.is_url else os.path.abspath(str(location))


def resolve_prompt(model: Stella, name: str) -> str:
    return "" if name == "none" else model.resolve_prompt(name)


def lasting(model: str) -> str:
    """The model's name in a form that holds in other working directories too."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model != "tiny" and path.exists() else model
