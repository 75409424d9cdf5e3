"""Guide: valid checkpoints, and its embeddings in a training step and in an evaluation."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from datasets_of_rows import dataset_of
from paths import GOLDENS

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.hub import TINY
from train.evaluation import Evaluation
from train.guide import open_guide
from train.losses import gist_embed

BASE = Checkpoint.open(TINY)
ROWS = [("a fog", "one fog", "no law"), ("a law", "one law", "no owl"), ("an owl", "one owl", "no fog")]


def changed(folder: Path, **files: dict) -> str:
    """A copy of `tiny` with other keys in some of its JSON files."""
    shutil.copytree(TINY, folder)
    for name, keys in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | keys))
    return str(folder)


def test_a_guide_with_another_tokenizer(refused) -> None:
    with refused("loss.guide", "stella"):
        open_guide(str(GOLDENS / "stella"), BASE, 64)


def test_a_guide_that_lowercases_has_another_tokenizer(tmp_path, refused) -> None:
    with refused("loss.guide"):
        open_guide(changed(tmp_path / "guide", sentence_bert_config={"do_lower_case": True}), BASE, 64)


def test_padding_and_truncation_of_its_file_do_not_matter(tmp_path) -> None:
    truncation = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    assert open_guide(changed(tmp_path / "guide", tokenizer={"truncation": truncation}), BASE, 64)


def test_a_guide_with_a_lower_limit_of_tokens(tmp_path, refused) -> None:
    guide = changed(tmp_path / "guide", sentence_bert_config={"max_seq_length": 32})
    assert open_guide(guide, BASE, 32)
    with refused("loss.guide", "32", "64"):
        open_guide(guide, BASE, 64)


def test_an_evaluation_passes_the_guide_s_embeddings_to_the_loss(tiny) -> None:
    loss = partial(gist_embed, temperature=0.1)
    guide = tiny.model.with_params({"head/bias": tiny.model.params()["head/bias"] + 1})
    place = (tiny.tokenizer, tiny.config.pad_token_id, tiny.mesh, {})
    found = Evaluation(tiny.model, *place, loss, 3, guide=guide)(tiny.model.params(), dataset_of(ROWS, ""))
    texts = [tiny.encode([row[i] for row in ROWS]) for i in range(3)]
    columns = {"guide": np.stack([vectors + 1 for vectors in texts], axis=1)}
    expected = loss(tuple(map(jnp.asarray, texts)), {"guide": jnp.asarray(columns["guide"])}).mean()
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
