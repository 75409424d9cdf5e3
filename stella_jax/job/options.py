"""Options of `embed` and `score`: for the model, for the output, and for the run."""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

from stella_jax import __version__
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.fingerprint import fingerprint
from stella_jax.checkpoint.hub import resolve
from stella_jax.devices import all_accelerators, start_jax
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job.processes import Processes
from stella_jax.job.progress import Show, Task
from stella_jax.option_values import GRACE_SECONDS, MAX_REJECTED
from stella_jax.pretrained import PretrainedModel
from stella_jax.readers.rows import RowFields
from stella_jax.reranker import Reranker
from stella_jax.sharding import make_mesh
from stella_jax.storage.location import locate

# Most rows of a part. A kill loses the open part: the 434M encoder takes half an hour for 2048 rows on a CPU.
PART_ROWS = {"cpu": 2048}
DEFAULT_PART_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model, and the devices it runs on; None is the default of the checkpoint or the platform.

    Attributes:
      dim: of the head, or of several heads.
      scores: whether the model is a reranker.
    """

    model: str = "tiny"
    revision: str | None = None
    dim: int | tuple[int, ...] | None = None
    dtype: str | None = None
    mesh: str | None = None
    max_length: int | None = None
    scores: bool = False

    def load(self) -> PretrainedModel:
        """Starts JAX and opens the model; a thread loads its weights.

        Whatever needs the weights waits for the thread. So does the end of the process, which would abort inside XLA.
        """
        model = self.open()
        Thread(target=_try_to_load, args=[model]).start()
        return model

    def open(self) -> PretrainedModel:
        """Starts JAX and opens the model; its weights are loaded when first needed."""
        start_jax()
        checkpoint = Checkpoint.open(resolve(self.model, self.revision))
        if self.scores:
            checkpoint.check_scores(self.model, "pass a reranker to --model")
        mesh = make_mesh(self.mesh or all_accelerators())
        kind = Reranker if self.scores else Stella
        model = kind(checkpoint, dim=self.dim, dtype=self.dtype, mesh=mesh, load=False)
        if self.max_length:
            model.max_seq_length = self.max_length
        return model

    def origin(self) -> dict[str, Any]:
        """The model's name and revision, for the manifest."""
        return {"model": absolute_name(self.model), "revision": self.revision}


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Options that determine the output, together with the model.

    Attributes:
      prompt: name of the prompt put before every text, or "none"; None is the model's prompt for documents.
      normalize: whether embeddings are scaled to unit length.
      precision: of the numbers in the parts, one of `option_values.PRECISIONS`.
      ranges: a file with the ranges of int8 and uint8 (see `ranges.read_ranges`); None takes them from a sample.
      part_rows: most rows of a part; None is the platform's default.
      split_bytes: most bytes of a split; None follows from the inputs' sizes.
      activation: of a reranker's scores, "sigmoid" or "none"; None is the model's own.
    """

    fields: RowFields = field(default_factory=RowFields)
    prompt: str | None = None
    normalize: bool = False
    precision: str = "float32"
    ranges: str | None = None
    part_rows: int | None = None
    split_bytes: int | None = None
    activation: str | None = None

    @property
    def task(self) -> Task:
        return "embedding" if self.fields.query is None else "scoring"

    def document_prompt(self, model: PretrainedModel) -> str:
        """The prompt text put before every text.

        Raises:
          StellaError: there is no such prompt, or it leaves no room for a text.
        """
        if not isinstance(model, Stella):
            return model.prompts.get("document", "")
        prompt = model.prompts.get("document", "") if self.prompt is None else prompt_from_option(model, self.prompt)
        model.tokenizer.check_prompt(prompt)
        return prompt

    def fingerprint(self, model: PretrainedModel) -> dict[str, Any]:
        """All that determines the output except the inputs and ranges, as JSON values.

        The types of kept columns must be known (see `kept_columns.resolve_types`).
        """
        return {
            "dims": list(model.head_dims),
            "dtype": model.dtype,
            "max_seq_length": model.max_seq_length,
            "prompt": self.document_prompt(model),
            "normalize": self.normalize,
            "precision": self.precision,
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            **self._scoring(model),
            "keep": dict(zip(self.fields.keep, map(str, self.fields.kept_types), strict=True)),
            "part_rows": self.part_rows or default_part_rows(model.platform),
            "model": fingerprint(model.checkpoint, model.heads),
            "platform": model.platform,
            "model_axis": model.mesh.shape["model"],  # the mesh's other axis does not change the bits
            "versions": {"stella_jax": __version__}
            | {name: version(name) for name in ("jax", "tokenizers", "pyarrow")},
        }

    def _scoring(self, model: PretrainedModel) -> dict[str, Any]:
        """Further fields of the fingerprint of a scoring job."""
        if not isinstance(model, Reranker):
            return {}
        return {"query_field": self.fields.query, "activation": self.activation or model.activation}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options that do not change the output.

    Attributes:
      max_rejected: share of the rows that may be rejected.
      processes: this process among those of the job.
      stop: to end the job early.
      show: progress on stderr: a bar, or a line each minute.
    """

    max_rejected: float = MAX_REJECTED
    processes: Processes = field(default_factory=Processes)
    stop: GracefulShutdown = field(default_factory=lambda: GracefulShutdown(GRACE_SECONDS))
    show: Show = "nothing"


@dataclass(frozen=True, slots=True)
class JobCommand:
    """An `embed` or `score` command, for any process to run."""

    inputs: tuple[str, ...]
    out: str
    model: ModelOptions
    job: JobOptions

    def absolute(self) -> "JobCommand":
        """The same command for a process in another working directory."""
        inputs = tuple(_absolute(text) for text in self.inputs)
        model = replace(self.model, model=absolute_name(self.model.model))
        job = replace(self.job, ranges=self.job.ranges and _absolute(self.job.ranges))
        return JobCommand(inputs, _absolute(self.out), model, job)


def _try_to_load(model: PretrainedModel) -> None:
    with suppress(Exception):  # raised again when the weights are used
        model.load_weights()


def _absolute(text: str) -> str:
    location = locate(text)
    return str(location) if location.is_url else os.path.abspath(str(location))


def default_part_rows(platform: str) -> int:
    return PART_ROWS.get(platform, DEFAULT_PART_ROWS)


def prompt_from_option(model: Stella, name: str) -> str:
    """The text of the prompt that an option `--prompt` names; "none" for the empty one."""
    if name == "none":
        return ""
    try:
        return model.resolve_prompt(name)
    except StellaError as error:
        raise StellaError(f"{str(error).rstrip('.')}; 'none' stands for no prompt.") from error


def absolute_name(model: str) -> str:
    """The model's name in a form that is valid in every working directory."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model != "tiny" and path.exists() else model
