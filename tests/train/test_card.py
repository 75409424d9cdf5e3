"""The model card of an export."""

import numpy as np
from datasets_of_rows import dataset_of
from exports import ROWS, SCORES
from paths import GOLDENS

from stella_jax.checkpoint.checkpoint import Checkpoint
from train import curves
from train.card import Origin, _log, _loss, card
from train.identity import identity
from train.metrics import MetricsLog
from train.recipe import recipe_of


def test_the_card_describes_the_model(exported, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda metrics, path, best: drawn.append(path) or True)
    path, _ = exported(
        "stella",
        dim=48,
        loss={"matryoshka_dims": [48, 32]},
        data={"train": "t", "eval": "e", "prompts": {"anchor": "s2p_query"}},
    )
    text = (path / "README.md").read_text()
    assert (
        "fine-tuned for 2 steps with the loss triplet (distance euclidean, margin 5, matryoshka_dims 48 and 32)" in text
    )
    assert "`2_Dense_48` is the trained head" in text
    assert "`2_Dense_32`, `2_Dense_64` and `2_Dense_128` belong to the encoder before training" in text
    assert "| cosine_accuracy | 0.5000 | 0.7500 |" in text
    assert f"* SHA-256 of the rows: `{ROWS.sha256}`" in text
    assert "| 0 | 0 | - | 4.0000 | 0.5000 | 0.2500 |\n| 0.5 | 1 | 4.0000 | - | - | - |\n| 1 | 2 | 5.0000 |" in text
    assert "| sha256 of the base's encoder | `" + "e" * 64 in text
    assert 'Prompts used in training (name or text): anchor: "s2p_query".' in text
    assert "](curves.png)" in text and drawn
    assert "matryoshka_dims = [48, 32]" in text
    assert "base_model" not in text


# The fields of the card of a fine-tune of stella_en_400M_v5 by sentence-transformers.
FIELDS = """
- **Model type:** Sentence Transformer
- **Base model:** stella
- **Maximum sequence length:** 64 tokens
- **Output dimensionality:** 64 dimensions
- **Similarity function:** cosine
- **Training datasets:** some and more
- **Architecture:** 3 layers of 64 dimensions, mean pooling and a Dense head to 64 dimensions (identity)
### Training datasets
#### some
* Size: 3 training samples
* Columns: <code>anchor</code>, <code>positive</code>, <code>negative</code> and <code>score</code>
* Approximate statistics based on the first 3 samples:
|  | <code>anchor</code> | <code>positive</code> | <code>negative</code> | <code>score</code> |
| type | string | string | string | float |
<ul><li>min: 3 tokens</li><li>mean: 3.67 tokens</li><li>max: 4 tokens</li></ul>
<ul><li>min: 0.10</li><li>mean: 0.40</li><li>max: 0.60</li></ul>
* Samples:
| <code>one</code> | <code>one two</code> | <code>a \\| b<br>c</code> | <code>0.5</code> |
* Loss: <code>MatryoshkaLoss</code> around <code>TripletLoss</code> with these parameters:
    "distance": "cosine",
    "margin": 0.5,
    "matryoshka_dims": [
#### more
<ul><li>0: ~50.00%</li><li>1: ~50.00%</li></ul>
<ul><li>size: 3 elements</li></ul>
### Evaluation dataset
* Size: 2 evaluation samples
#### Non-default hyperparameters
- `loss.margin`: 0.5
- `optimizer.learning_rate`: 0.001
- `seed`: 42
#### All hyperparameters
warmup_ratio = 0.1
### Training logs
| Epoch | Step | Training Loss | eval loss | eval cosine_accuracy | eval cosine_mrr@10 |
### Framework versions
| jax |
| python |
"""


def test_the_card_has_the_fields_of_sentence_transformers(monkeypatch, metrics, tmp_path):
    some = dataset_of(
        [("one", "one two", "a | b\nc"), ("one two", "x", "y"), ("one two", "v", "w")],
        "some.jsonl",
        {"score": np.array([0.5, 0.1, 0.6], np.float32)},
        name="some",
    )
    columns = {"label": np.array([0, 1], np.float32), "teacher": np.ones((2, 3), np.float32)}
    more = dataset_of([("a", "b"), ("c", "d")], "more.jsonl", columns, name="more")
    sets = [{"path": "some.jsonl"}, {"path": "more.jsonl"}, {"path": "e", "split": "eval"}]
    tree = {"model": "stella", "output": "o", "data": {"sets": sets}, "optimizer": {"learning_rate": 1e-3}}
    recipe = recipe_of(tree | {"loss": {"distance": "cosine", "margin": 0.5, "matryoshka_dims": [64, 32]}})
    data = {"train": (some, more), "eval": (ROWS,)}
    base = Checkpoint.open(GOLDENS / "stella")
    origin = Origin(recipe, identity(recipe, data, {"encoder": "e", "heads": {}}), data, 2)
    text = card(origin, metrics, base.spec, base.spec.head(64), [], False, base.tokenizer())
    for line in FIELDS.strip().splitlines():
        assert line in text, line
    assert 'tags: ["sentence-transformers", "sentence-similarity", "feature-extraction", "stella-jax", ' in text
    assert '"dataset_size:5", "loss:MatryoshkaLoss", "loss:TripletLoss"]' in text


def test_the_card_leaves_out_options_of_a_loss_that_are_not_set():
    loss = {"name": "multiple_negatives_ranking", "directions": ["query_to_doc", "doc_to_query"]}
    words = _loss(recipe_of({"model": "stella", "output": "o", "data": {"train": "t"}, "loss": loss}))
    assert words.startswith("the loss multiple_negatives_ranking (scale 20, directions query_to_doc and doc_to_query, ")
    assert "hardness_mode" not in words


def test_a_long_log_is_shortened(tmp_path):
    with MetricsLog(tmp_path, 0) as metrics:
        for step in range(1, 1001):
            metrics.write({"step": step, "epoch": step / 1000, "loss": float(step)})
            if step % 10 == 0:
                metrics.write({"step": step, "epoch": step / 1000, "eval": SCORES})
        [found] = _log(metrics, None)
    rows = found.splitlines()[2:]
    assert 50 <= len(rows) <= 100
    assert rows[0].startswith("| 0.02 | 20 | 10.5000 | 4.0000 |") and rows[-1].startswith("| 1 | 1000 | 990.5000 |")
