"""A model as mteb 2 takes it: `mteb.evaluate(MtebEncoder("tiny"), mteb.get_tasks(...))`; needs the extra `mteb`."""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.fingerprint import fingerprint
from stella_jax.hub import REPO_ID
from stella_jax.prompts import query_prompt_name

# mteb's types of tasks whose texts are alike, not queries and documents.
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
    """mteb's EncoderProtocol.

    Queries take the prompt of `encode_query`, documents the one of `encode_document`, and texts of tasks without
    either (STS, clustering, ...) `s2s_query`, where the checkpoint has them.

    Args:
      model: a `Stella`, or what `Stella.from_pretrained` loads.
      revision: as there.
      device: None; or "cpu", "cuda" or "tpu", where the model runs on it anyway.
      name: "organization/model" in results; by default the repo id, else "stella-jax/" and the directory's name.
      prompts: texts in place of these, by mteb's keys, the first that is there: "<task>-query", "<task>",
        "<type>-query", "<type>", "query"; or with "document".
      options: of `Stella.from_pretrained`, such as dim and dtype.

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
        """Embeds the texts of a data loader, all of them at once; its batch size is ignored, as shapes decide rows.

        Args:
          inputs: batches, {"text": texts, ...} each.
          task_metadata, prompt_type: what the prompt follows from.

        Returns:
          [n, dim] float32, or as `precision` says.
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
        """mteb's ModelMeta; the revision is a hash of weights, tokenizer and settings, so that results are of these.

        Raises:
          StellaError: mteb is not installed.
        """
        try:
            models = import_module("mteb.models")
        except ImportError as error:
            raise StellaError("mteb is not installed; pip install 'stella-jax[mteb]'.") from error
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
