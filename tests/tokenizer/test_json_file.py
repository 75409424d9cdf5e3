"""Accepted tokenizer.json files: published ones, those saved by transformers, and their parts."""

import base64
import json
from pathlib import Path

import pytest
import tokenizers
from corruptions import tokenizer as changed
from paths import GOLDENS

from stella_jax.tokenizer.json_file import load_tokenizer
from stella_jax.tokenizer.tokenizer import Tokenizer

TEXT = "Green tea,  has been CONSUMED for 1,000 years!\n\nIt\u2019s \ufb01ne \u4eac\u90fd e\u0301"


def as_the_library(path: Path, text: str = TEXT) -> None:
    """The file is accepted and loaded unchanged."""
    ours = load_tokenizer(path)
    assert ours.encode(text).ids == tokenizers.Tokenizer.from_file(str(path)).encode(text).ids


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*/tokenizer.json")), ids=lambda path: path.parent.name)
def test_every_supported_model(path):
    as_the_library(path)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["BertTokenizer", "XLMRobertaTokenizer", "Qwen2Tokenizer"])
def test_tokenizers_saved_by_transformers(name, tmp_path):
    import transformers

    vocabularies = {
        "BertTokenizer": {"vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "tea": 5}},
        "XLMRobertaTokenizer": {
            "vocab": [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581tea", -1.5), ("e", -2.0)],
            "_spm_precompiled_charsmap": charsmap("\ufb01", "fi"),
        },
        "Qwen2Tokenizer": {"vocab": {"<|endoftext|>": 0, "t": 1, "e": 2, "te": 3}, "merges": [("t", "e")]},
    }
    getattr(transformers, name)(**vocabularies[name]).save_pretrained(tmp_path)
    as_the_library(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKC"}]}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}},
        {"normalizer": {"type": "Prepend", "prepend": "\u2581"}},
        {"normalizer": None, "decoder": None, "truncation": None},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    ],
    ids=lambda parts: json.dumps(parts)[:60],
)
def test_parts_of_published_files(parts, checkpoint_copy):
    path = checkpoint_copy()
    changed(**parts)(path)
    load_tokenizer(path / "tokenizer.json")


def charsmap(text: str, replacement: str) -> bytes:
    """The map of one character in units of darts-clone: a node's children are in their own block."""
    units, place, word = [0] * 256 * (len(text.encode()) + 2), 0, text.encode()
    for depth, byte in enumerate(word, 1):
        units[place] |= (place ^ 256 * depth) << 10
        place = 256 * depth ^ byte
        units[place] = byte
    units[place] |= 1 << 8 | (place ^ 256 * (len(word) + 1)) << 10
    units[256 * (len(word) + 1)] = 1 << 31
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(trie).to_bytes(4, "little") + trie + replacement.encode() + b"\0"


def test_character_map_is_applied(checkpoint_copy):
    path = checkpoint_copy("arctic-m-v2")
    encoded = base64.b64encode(charsmap("\ufb01", "fi")).decode()
    changed(normalizer={"type": "Precompiled", "precompiled_charsmap": encoded})(path)
    ligature, letters = Tokenizer(path / "tokenizer.json", max_length=64).encode(["\ufb01ne", "fine"])
    assert ligature.ids == letters.ids
