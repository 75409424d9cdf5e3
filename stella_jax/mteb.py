"""A model for mteb 2: `mteb.evaluate(MtebEncoder("tiny"), mteb.get_tasks(...))`; needs the extra `mteb`."""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.checkpoint.fingerprint import fingerprint
from stella_jax.checkpoint.hub import REPO_ID
from stella_jax.checkpoint.prompts import query_prompt_name
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError

# mteb's task types without queries and documents.
SYMMETRIC = (
    "BitextMining",
    "Classification",
    "Clustering",
    "MultilabelClassification",
    "PairClassification",
    "Regression",
    "STS",
    "Summarization",
)


class MtebEncoder:
    """Implements mteb's EncoderProtocol.

    Queries have the prompt of `encode_query`, documents of `encode_document`, and texts of other tasks (STS,
    clustering, ...) the prompt `s2s_query`, if the checkpoint has it.

    Args:
      model: a `Stella`, or a name for `Stella.from_pretrained`.
      revision: as in `Stella.from_pretrained`.
      device: None, or the platform that the model runs on anyway ("cpu", "cuda", "tpu").
      name: "organization/model" in results; by default the repo id, or "stella-jax/" and the directory's name.
      prompts: texts that replace these prompts, by mteb's keys in this order: `<task>-query`, `<task>`,
        `<type>-query`, `<type>`, `query`; for documents with `document` in place of `query`.
      options: further arguments of `Stella.from_pretrained`, such as dim and dtype.

    Raises:
      StellaError: as `Stella.from_pretrained`.
    """

    def __init__(
        self,
        model: Stella | str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        prompts: Mapping[str, str] | None = None,
        **options: Any,
    ):
        if not isinstance(model, Stella):
            name = name or (str(model) if REPO_ID.fullmatch(str(model)) and not Path(model).exists() else None)
            model = Stella.from_pretrained(model, revision=revision, device=device, **options)
        self.model = model
        self.prompts = _prompts(model.prompts) | dict(prompts or {})
        self._name = name or f"stella-jax/{model.checkpoint.directory.root.resolve().name}"

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        show_progress_bar: bool | None = None,
        precision: str | None = "float32",
        **ignored: Any,
    ) -> np.ndarray:
        """Embeds all texts of a data loader at once; its batch size is ignored.

        Args:
          inputs: batches {"text": texts, ...}.
          task_metadata, prompt_type: decide the prompt.

        Returns:
          [n, dim] float32, or the dtype of `precision`.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self._prompt(task_metadata.name, task_metadata.type, prompt_type and prompt_type.value)
        return self.model.encode(texts, prompt=prompt, show_progress_bar=show_progress_bar, precision=precision)

    def _prompt(self, task: str, type: str, kind: str | None) -> str:
        keys = [f"{task}-{kind}", task, f"{type}-{kind}", type, kind]
        return next((self.prompts[key] for key in keys if key in self.prompts), "")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """`Stella.similarity`."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """`Stella.similarity_pairwise`."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """mteb's ModelMeta; the revision is a hash of weights, tokenizer and settings.

        Raises:
          StellaError: mteb is not installed.
        """
        try:
            models = import_module("mteb.models")
        except ImportError as error:
            raise StellaError("mteb: not installed; run pip install 'stella-jax[mteb]'.") from error
        model = self.model
        sizes = {name: leaf.nbytes for name, leaf in model.model.params().items()}
        count = sum(leaf.size for leaf in model.model.params().values())
        return models.ModelMeta(
            loader=None,
            name=self._name,
            revision=_revision(model),
            release_date=None,
            languages=None,
            n_parameters=count,
            memory_usage_mb=sum(sizes.values()) / 2**20,
            max_tokens=model.max_seq_length,
            embed_dim=model.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["JAX", "safetensors"],
            similarity_fn_name=model.similarity_fn_name,
            use_instructions=any(self.prompts.values()),
            training_datasets=None,
        )


def _prompts(own: Mapping[str, str]) -> dict[str, str]:
    """The checkpoint's prompts by mteb's keys."""
    found = {"query": own.get(query_prompt_name(own) or "", ""), "document": own.get("document", "")}
    return found | dict.fromkeys(SYMMETRIC, own.get("s2s_query", ""))


def _revision(model: Stella) -> str:
    found = fingerprint(model.checkpoint, model.heads[:1])
    parts = [found["encoder"], *found["heads"].values(), found["tokenizer"], found["settings"]]
    return "-".join(part[:8] for part in parts)
