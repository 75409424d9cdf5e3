"""Arguments that `Stella` refuses; each error names the argument."""

import sys
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
from paths import GOLDENS

from stella_jax import Stella


@pytest.mark.parametrize(
    ("sentences", "named"),
    [
        (None, "sentences"),
        (5, "sentences"),
        (b"bytes", "sentences"),
        ({"a": 1}, "sentences"),
        ({"a"}, "sentences"),
        (np.array("a"), "sentences"),
        ([None], "sentences[0]"),
        (["a", 5], "sentences[1]"),
        (["a", b"b"], "sentences[1]"),
        ([["a", "b"]], "sentences[0]"),
        ([("a", "b")], "sentences[0]"),
        (np.array([["a"]]), "sentences[0]"),
        (np.array([1.5]), "sentences[0]"),
        (bytearray(b"a"), "sentences[0]"),
        (["a", "\ud800"], "sentences[1]"),
        ("\ud800", "sentences[0]"),
    ],
)
def test_invalid_sentences(stella, sentences, named, refused):
    with refused(named):
        stella.encode(sentences)


def test_generator_of_sentences(stella, refused):
    with refused("sentences", "generator", varies=True):
        stella.encode(text for text in "ab")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prompt_name", "query"),
        ("prompt_name", ["query"]),
        ("prompt_name", ""),
        ("prompt", 5),
        ("prompt", "\ud800"),
        ("output_value", "hidden"),
        ("output_value", None),
        ("precision", "int4"),
        ("precision", ["binary"]),
        ("precision", "int8"),  # of a single text
        ("truncate_dim", 0),
        ("truncate_dim", 65),
        ("truncate_dim", -1),
        ("truncate_dim", "32"),
        ("truncate_dim", 32.0),
        ("batch_size", 0),
        ("batch_size", -3),
        ("batch_size", "8"),
        ("batch_size", 2.5),
        ("inputs", ["a"]),
        ("device", "nowhere"),
        ("device", ["cpu", "cpu"]),
        ("pool", {"input": None}),
        ("chunk_size", 100),
    ],
)
def test_invalid_options_of_encode(stella, option, value, refused):
    with refused({"prompt_name": "prompt", "precision": str(value)}.get(option, option)):
        stella.encode(["a"], **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "float16"),
        ("dtype", ["float32"]),
        ("dim", 512),
        ("dim", "64"),
        ("dim", 0),
        ("dim", [32]),
        ("dim", (32, 65)),
        ("dim", ()),
        ("mesh", "data=1,data=1"),
        ("device", "cuda"),
        ("truncate_dim", 65),
        ("truncate_dim", 0),
        ("prompts", ["q: "]),
        ("default_prompt_name", "q"),
        ("similarity_fn_name", "maxsim"),
    ],
)
def test_invalid_options_of_from_pretrained(option, value, refused):
    with refused(option):
        Stella.from_pretrained(GOLDENS / "stella", **{option: value})


def test_prompts_are_any_mapping() -> None:
    prompts = MappingProxyType({"q": "query: "})
    assert Stella.from_pretrained("tiny", prompts=prompts).prompts["q"] == "query: "


def test_prompt_with_a_surrogate(refused):
    with refused("prompt 'q'"):
        Stella.from_pretrained(GOLDENS / "stella", prompts={"q": "\ud800"})


@pytest.mark.parametrize("name", ["tiny", "NovaSearch/stella_en_400M_v5", GOLDENS / "stella"])
def test_name_in_place_of_a_checkpoint(name, refused):
    stella: Any = Stella
    with refused("Stella.from_pretrained", str(name)):
        stella(name, trust_remote_code=True)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_encode_inside_a_transform(stella, transform, refused):
    def embedded(x):
        return x + stella.encode(["a"])[0, 0]

    with refused("encode"):
        transform(embedded)(np.float32(1) if transform is not jax.vmap else np.ones(2, np.float32))


@pytest.mark.parametrize("option", ["convert_to_tensor", "convert_to_numpy"])
def test_tensors_without_torch(stella, option, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "torch", None)
    with refused("torch"):
        stella.encode(["a"], **{option: option == "convert_to_tensor"})
    assert stella.similarity(stella.encode(["a"]), stella.encode(["b"])).shape == (1, 1)
