"""Conversion of a reranker: both ways, and loading in transformers and CrossEncoder."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from corruptions import config
from marks import nightly
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from stella_jax import Reranker

SOURCE = GOLDENS / "gte-reranker"
LOREM = "Green tea has been consumed for centuries. "
# No white space at the ends: transformers 5 rebuilds XLM-R tokenizers without it, while tokenizer.json keeps it.
PAIRS = [("What is Deep Learning?", (LOREM * n).strip()) for n in (1, 2, 3, 9, 30)]
PAIRS += [
    (LOREM.strip(), "tea"),
    ("tea", ""),
    ("", "tea"),
    ("北京", "快排算法介绍"),
    ("tea", "北京"),
    ((LOREM * 50).strip(), "a"),
]


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def raw(path: Path, **options) -> np.ndarray:
    return Reranker.from_pretrained(path, dtype="float32", **options).predict(PAIRS, activation="none")


@pytest.fixture(scope="module", autouse=True)
def two_buckets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [64, longest])
        yield


@pytest.mark.parametrize("dtype", ["float16", *nightly("float32")])
def test_round_trip_byte_for_byte(checkpoint_copy, tmp_path, dtype):
    source = checkpoint_copy("gte-reranker")
    arrays = load_file(source / "model.safetensors")
    if dtype != "float16":
        save_file({name: array.astype(dtype) for name, array in arrays.items()}, source / "model.safetensors")
    assert main([str(source), str(tmp_path / "flax"), "--verify"]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "torch"), "--to", "torch"]) == 0
    came, went = files(source), files(tmp_path / "torch")
    came.pop("expected.safetensors")
    assert went == came
    np.testing.assert_array_equal(raw(tmp_path / "flax"), raw(source))


def test_dry_run_names_the_head(capsys):
    assert main([str(SOURCE), "nowhere", "--dry-run"]) == 0
    output = capsys.readouterr().out
    for line in (
        r"new.pooler.dense.weight                             [64, 64]   float16  ->  heads/classifier/pooler/kernel",
        r"classifier.weight                                   [1, 64]    float16  ->  heads/classifier/kernel",
    ):
        assert line.split() in [row.split()[: len(line.split())] for row in output.splitlines()]
    assert ": config.json, expected_texts.json, " in output


def header(path: Path) -> dict[str, dict]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def test_native_conversion_converts_back(tmp_path, capsys):
    assert main([str(SOURCE), str(tmp_path / "native"), "--to", "transformers", "--verify"]) == 0
    assert "4 pairs have the same scores, bit for bit" in capsys.readouterr().out
    names = header(tmp_path / "native/model.safetensors").keys() - {"__metadata__"}
    assert {name.partition(".")[0] for name in names} == {"gte", "classifier"}
    fields = json.loads((tmp_path / "native/config.json").read_text())
    assert (fields["architectures"], fields["id2label"]) == (["GteForSequenceClassification"], {"0": "LABEL_0"})
    np.testing.assert_array_equal(raw(tmp_path / "native"), raw(SOURCE))
    assert main([str(tmp_path / "native"), str(tmp_path / "flax")]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "back"), "--to", "torch"]) == 0
    assert files(tmp_path / "back") == files(tmp_path / "native")


def test_verify_reports_different_weights(checkpoint_copy, tmp_path, capsys, check_message):
    source = checkpoint_copy("gte-reranker")
    assert main([str(source), str(tmp_path / "flax")]) == 0
    arrays = load_file(source / "model.safetensors")
    save_file(arrays | {"classifier.bias": arrays["classifier.bias"] + 1}, source / "model.safetensors")
    assert main([str(source), str(tmp_path / "flax"), "--verify"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "heads/classifier/bias")


def test_save_pretrained(tmp_path):
    model = Reranker.from_pretrained(SOURCE, dtype="float32")
    model.save_pretrained(tmp_path / "as-it-was")
    assert files(tmp_path / "as-it-was") == {k: v for k, v in files(SOURCE).items() if k != "expected.safetensors"}
    model.max_length = 40
    model.save_pretrained(tmp_path / "shorter", native=True)
    shorter = Reranker.from_pretrained(tmp_path / "shorter", dtype="float32")
    assert shorter.max_length == 40
    np.testing.assert_array_equal(shorter.predict(PAIRS), model.predict(PAIRS))


def test_changed_head_is_saved(tmp_path):
    model = Reranker.from_pretrained(SOURCE, dtype="float32").model
    changed = model.with_params({"head/bias": model.params()["head/bias"] + 1})
    changed.save_pretrained(tmp_path / "changed")
    np.testing.assert_allclose(raw(tmp_path / "changed"), raw(SOURCE) + 1, rtol=0, atol=1e-5)
    before, after = (load_file(path / "model.safetensors") for path in (SOURCE, tmp_path / "changed"))
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["classifier.bias"]


def test_training_refuses_a_reranker(tmp_path, capsys, check_message):
    from train.__main__ import main as train

    (tmp_path / "train.jsonl").write_text('{"anchor": "a", "positive": "b"}\n' * 4)
    recipe = f'model = "{SOURCE}"\noutput = "{tmp_path}/out"\nseed = 1\n[data]\ntrain = "{tmp_path}/train.jsonl"\n'
    recipe += '[loss]\nname = "multiple_negatives_ranking"\nscale = 20.0\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    assert train([str(tmp_path / "recipe.toml")]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "gte-reranker: ")


# --- transformers and sentence-transformers


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("native") / "native"
    assert main([str(SOURCE), str(path), "--to", "transformers"]) == 0
    return path


@pytest.fixture
def cross_encoder():
    """CrossEncoder in float32, like ours; the weights are stored in float16."""
    from sentence_transformers import CrossEncoder

    options = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": "float32"}}
    return lambda path: CrossEncoder(str(path), **options)


@pytest.mark.torch
def test_transformers_own_class(native, tmp_path):
    import torch
    from transformers import GteForSequenceClassification, PreTrainedTokenizerFast

    model = GteForSequenceClassification.from_pretrained(native, dtype=torch.float64).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(native / "tokenizer.json"), pad_token="<pad>")
    first, second = zip(*PAIRS, strict=True)
    options = {"truncation": "longest_first", "max_length": 512, "padding": True, "return_tensors": "pt"}
    inputs = tokenizer(list(first), list(second), **options)
    with torch.no_grad():
        expected = model(inputs["input_ids"], inputs["attention_mask"]).logits[:, 0].numpy()
    np.testing.assert_allclose(raw(SOURCE), expected, rtol=0, atol=1e-5)
    model.half().save_pretrained(tmp_path / "saved")
    ours, theirs = header(native / "model.safetensors"), header(tmp_path / "saved/model.safetensors")
    assert ours.keys() | {"__metadata__"} == theirs.keys()


@pytest.mark.torch
def test_cross_encoder(native, cross_encoder):
    theirs, ours = cross_encoder(native), Reranker.from_pretrained(native, dtype="float32")
    assert theirs.max_seq_length == ours.max_length == 512
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), rtol=0, atol=1e-5)
    documents = [text for _, text in PAIRS[:5]]
    mine, his = ours.rank("tea", documents, 3, return_documents=True), theirs.rank("tea", documents, 3, True)
    assert [(each["corpus_id"], each["text"]) for each in mine] == [(each["corpus_id"], each["text"]) for each in his]
    np.testing.assert_allclose([each["score"] for each in mine], [each["score"] for each in his], rtol=0, atol=1e-5)


@pytest.mark.torch
def test_saves_of_cross_encoder(native, cross_encoder, tmp_path):
    import torch

    theirs = cross_encoder(native)
    theirs.activation_fn = torch.nn.Identity()
    theirs.max_seq_length = 50
    theirs.save_pretrained(str(tmp_path / "saved"))
    ours = Reranker.from_pretrained(tmp_path / "saved", dtype="float32")
    assert (ours.activation, ours.max_length) == ("none", 50)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), rtol=0, atol=1e-5)
    assert main([str(tmp_path / "saved"), str(tmp_path / "flax")]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "back"), "--to", "torch"]) == 0
    assert files(tmp_path / "back") == files(tmp_path / "saved")


@pytest.mark.torch
@pytest.mark.parametrize("field", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_activations_survive_a_native_conversion(checkpoint_copy, cross_encoder, tmp_path, field):
    source, identity = checkpoint_copy("gte-reranker"), "torch.nn.modules.linear.Identity"
    config(**{field: {"activation_fn": identity} if field == "sentence_transformers" else identity})(source)
    assert main([str(source), str(tmp_path / "native"), "--to", "transformers"]) == 0
    theirs, ours = cross_encoder(tmp_path / "native"), Reranker.from_pretrained(source, dtype="float32")
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), rtol=0, atol=1e-5)
    assert np.abs(ours.predict(PAIRS)).max() > 1
