"""Reading modules.json and settings, in both schemas."""

import shutil
from pathlib import Path

import pytest
from checkpoint_files import write_json
from corruptions import config, edited, max_seq_length, modules, pooling, removed, settings
from paths import GOLDENS

from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.modules_json import read_model_spec
from stella_jax.errors import join_words
from stella_jax.models.heads import Head

S2P = "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: "


def spec(path: Path) -> ModelSpec:
    return read_model_spec(Directory(path))


def test_stella():
    found = spec(GOLDENS / "stella")
    assert (found.transformer, found.pooling, found.normalize, found.similarity) == ("", "mean", False, "cosine")
    assert found.dims == (32, 48, 64, 128)
    assert found.default_dim == 64
    assert found.head(None) == found.head(64) == Head("2_Dense_64", 64, bias=True, activation="identity")
    assert found.prompts["s2p_query"] == S2P
    assert (found.default_prompt_name, found.max_seq_length, found.lower) == (None, 64, False)


def test_schema_of_sentence_transformers_6():
    found = spec(GOLDENS / "stella-finetuned-st6")
    assert (found.pooling, found.dims, found.default_dim) == ("mean", (64,), 64)
    assert found.head(None) == Head("2_Dense", 64)


def test_no_head(refused):
    found = spec(GOLDENS / "arctic-m-v2")
    assert (found.pooling, found.normalize, found.heads, found.default_dim) == ("cls", True, {}, None)
    assert found.dims == (64,)
    assert found.head(None) is None
    assert found.head(64) is None
    with refused("dim = 32"):
        found.head(32)


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    ],
)
def test_pooling(checkpoint_copy, flags, mode):
    path = checkpoint_copy()
    pooling(**flags)(path)
    assert spec(path).pooling == mode


@pytest.mark.parametrize(
    ("activation", "read"),
    [
        ("torch.nn.modules.linear.Identity", "identity"),
        ("torch.nn.modules.activation.Tanh", "tanh"),
        (..., "tanh"),  # sentence-transformers' own default
    ],
)
def test_activations_by_class_name(checkpoint_copy, activation, read):
    path = checkpoint_copy()
    edited("2_Dense_64/config.json", activation_function=activation)(path)
    head = spec(path).head(None)
    assert head is not None
    assert head.activation == read


def test_head_of_modules_json_takes_precedence_over_a_leftover(checkpoint_copy):
    path = checkpoint_copy()
    shutil.copytree(path / "2_Dense_64", path / "2_Dense")
    assert spec(path).heads[64].folder == "2_Dense_64"
    modules("Transformer:", "Pooling:1_Pooling", "Dense:2_Dense")(path)
    assert spec(path).heads[64].folder == "2_Dense"


def test_heads_without_one_in_modules_json(checkpoint_copy):
    path = checkpoint_copy()
    modules("Transformer:", "Pooling:1_Pooling")(path)
    found = spec(path)
    assert (found.default_dim, found.head(None)) == (None, None)
    assert found.dims == (32, 48, 64, 128)
    assert found.head(32) is not None


def test_transformer_in_a_subfolder(checkpoint_copy):
    path = checkpoint_copy()
    (path / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json"):
        (path / name).rename(path / "0_Transformer" / name)
    modules("Transformer:0_Transformer", "Pooling:1_Pooling", "Dense:2_Dense_64")(path)
    found = spec(path)
    assert found.file("tokenizer.json") == "0_Transformer/tokenizer.json"
    assert found.max_seq_length == 64


@pytest.mark.parametrize("value", [10, 512, 10**30, float("inf"), 100.0])
def test_max_seq_length_is_capped_by_the_encoder(checkpoint_copy, value):
    path = checkpoint_copy()
    max_seq_length(value)(path)
    assert spec(path).max_seq_length == min(value, 512)


def test_max_seq_length_defaults_to_the_tokenizers(checkpoint_copy):
    path = checkpoint_copy()
    removed("sentence_bert_config.json")(path)
    edited("tokenizer_config.json", model_max_length=100)(path)
    assert spec(path).max_seq_length == 100
    removed("tokenizer_config.json")(path)
    assert spec(path).max_seq_length == 512


def test_missing_settings_mean_defaults(checkpoint_copy):
    path = checkpoint_copy()
    removed("config_sentence_transformers.json")(path)
    found = spec(path)
    assert (found.prompts, found.default_prompt_name, found.similarity) == ({}, None, "cosine")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(checkpoint_copy, name):
    path = checkpoint_copy()
    settings(similarity_fn_name=name)(path)
    assert spec(path).similarity == name


def test_default_prompt(checkpoint_copy):
    path = checkpoint_copy()
    settings(default_prompt_name="s2s_query")(path)
    assert spec(path).default_prompt_name == "s2s_query"


def test_byte_order_mark_is_accepted(checkpoint_copy):
    path = checkpoint_copy()
    expected = spec(path)
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())
    assert spec(path) == expected


def test_unknown_fields_and_files_are_ignored(checkpoint_copy):
    path = checkpoint_copy()
    expected = spec(path)
    config(a_new_field={"x": [1]})(path)
    settings(another={"y": None})(path)
    write_json(path / "unheard_of.json", [])
    (path / "2_Dense_64_old").mkdir()
    assert spec(path) == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "none"), (["a"], "a"), (["a", "b"], "a and b"), ([1, 2, 3], "1, 2 and 3"), (["a\nb"], r"'a\nb'")],
)
def test_listed(names, words):
    assert join_words(names) == words
