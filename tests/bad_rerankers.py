"""Damaged or unsupported reranker checkpoints, and what the error names for each."""

from pathlib import Path

import numpy as np
from checkpoint_files import write_json
from corruptions import Corruption, config, modules, removed, tensors, tokenizer

from stella_jax.checkpoint.directory import SETTINGS


def saved_by_cross_encoder(**fields: object) -> Corruption:
    """With the settings of sentence-transformers, which it reads where there is a modules.json."""

    def corrupt(path: Path) -> None:
        modules("Transformer:")(path)
        write_json(path / SETTINGS, fields)

    return corrupt


def labels(count: int) -> Corruption:
    return config(id2label={str(i): f"LABEL_{i}" for i in range(count)})


def rows_of_classifier(count: int) -> Corruption:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["classifier.weight"] = np.ones((count, 64), np.float16)
        arrays["classifier.bias"] = np.ones(count, np.float16)

    return tensors(change)


def without(*names: str) -> Corruption:
    return tensors(lambda arrays: [arrays.pop(name) for name in names])


NARROW = {"new.pooler.dense.weight": np.ones((32, 64), np.float16)}
TANH = {"activation_fn": "torch.nn.modules.activation.Tanh"}

RERANKERS: dict[str, tuple[Corruption, str]] = {
    "three labels": (labels(3), "num_labels"),
    "num_labels": (config(num_labels=2), "num_labels"),
    "no label": (labels(0), "num_labels"),
    "a classifier of three": (rows_of_classifier(3), "classifier.weight"),
    "no pooler": (without("new.pooler.dense.weight", "new.pooler.dense.bias"), "new.pooler.dense.bias"),
    "no classifier": (without("classifier.weight", "classifier.bias"), "classifier.weight"),
    "a narrow pooler": (tensors(lambda arrays: arrays.update(NARROW)), "new.pooler.dense.weight"),
    "modules of an embedding model": (modules("Transformer:", "Pooling:1_Pooling"), "modules.json"),
    "another activation": (config(sentence_transformers=TANH), "sentence_transformers.activation_fn"),
    "another activation, older": (
        config(sbert_ce_default_activation_function="torch.nn.ReLU"),
        "sbert_ce_default_activation_function",
    ),
    "a prompt": (saved_by_cross_encoder(prompts={"q": "q: "}, default_prompt_name="q"), "default_prompt_name"),
    "no tokenizer": (removed("tokenizer.json"), "tokenizer.json"),
    "no weights": (removed("model.safetensors"), "model.safetensors"),
    "no config": (removed("config.json"), "modules.json"),
    "an unknown architecture": (config(architectures=["NewForTokenClassification"]), "NewForTokenClassification"),
    "ids beyond the vocabulary": (
        tokenizer(lambda fields: fields["post_processor"]["special_tokens"]["</s>"].update(ids=[70_000])),
        "70000",
    ),
}
