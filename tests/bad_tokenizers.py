"""Damaged, hostile or unsupported tokenizer files, and what the error names for each."""

import base64
from typing import Any

from corruptions import (
    Corruption,
    extended,
    folder,
    linked,
    pipe,
    removed,
    special_tokens,
    tokenizer,
    truncated,
    written,
)

FILE = "tokenizer.json"
A, B = ({"Sequence": {"id": id, "type_id": 0}} for id in "AB")
CLS, SEP = ({"SpecialToken": {"id": id, "type_id": 0}} for id in ("[CLS]", "[SEP]"))


def template(**pieces: Any) -> Corruption:
    return tokenizer(lambda fields: fields["post_processor"].update(pieces))


def model(**fields: Any) -> Corruption:
    return tokenizer(lambda parts: parts["model"].update(fields))


def normalizer(*parts: dict[str, Any]) -> Corruption:
    return tokenizer(normalizer={"type": "Sequence", "normalizers": [*parts]} if len(parts) != 1 else parts[0])


def pre_tokenizer(*parts: dict[str, Any]) -> Corruption:
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [*parts]} if len(parts) != 1 else parts[0])


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(**pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def charsmap(blob: bytes) -> Corruption:
    return normalizer({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()})


def added(**fields: Any) -> Corruption:
    token = {"id": 9, "content": "x", "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return tokenizer(lambda parts: parts["added_tokens"].append(token | fields))


def unigram(*vocabulary: Any, **fields: Any) -> Corruption:
    return tokenizer(model={"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [*vocabulary]} | fields)


def bpe(**fields: Any) -> Corruption:
    return tokenizer(model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]} | fields)


def units(*values: int, replacements: bytes = b"x\0") -> bytes:
    """A character map of one block of units."""
    trie = b"".join(value.to_bytes(4, "little") for value in (*values, *[0] * (256 - len(values))))
    return len(trie).to_bytes(4, "little") + trie + replacements


TOKENIZERS: dict[str, tuple[Corruption, str]] = {
    # --- the file
    "missing": (removed(FILE), "tokenizer.json"),
    "broken": (truncated(FILE, 500), "tokenizer.json"),
    "not text": (written(FILE, b"\xff\x00\x80"), "tokenizer.json"),
    "empty": (written(FILE, ""), "tokenizer.json"),
    "deeply nested": (written(FILE, "[" * 10**6), "tokenizer.json"),
    "a list": (written(FILE, "[]"), "tokenizer.json"),
    "a folder": (folder(FILE), "tokenizer.json"),
    "a pipe": (pipe(FILE), "tokenizer.json"),
    "endless zeros": (linked(FILE, "/dev/zero"), "tokenizer.json"),
    "a terabyte": (extended(FILE, 2**40), "tokenizer.json"),
    "five million values": (written(FILE, "[" + "1," * 5 * 10**6 + "1]"), "tokenizer.json"),
    "two million objects": (written(FILE, "[" + "{}," * 10**6 + "1]"), "tokenizer.json"),
    "a name twice": (lambda path: (path / FILE).write_text('{"model": 1, ' + (path / FILE).read_text()[1:]), "'model'"),
    "unknown field": (tokenizer(post_procesor=None), "post_procesor"),
    "unknown field of a megabyte": (tokenizer(lambda t: t.update({"x" * 10**6: 1})), "xxx"),
    # --- normalizer
    "unsupported normalizer": (normalizer({"type": "ByteLevel"}), "ByteLevel"),
    "normalizer without a type": (normalizer({"lowercase": True}), "normalizer"),
    "normalizer is a list": (tokenizer(normalizer=[]), "normalizer"),
    "Replace that grows": (normalizer(replace("x" * 16, String="e")), "normalizer.content"),
    "Replace of nothing": (normalizer(replace("x", String="")), "normalizer.pattern"),
    "Replace that backtracks": (normalizer(replace("", Regex="(e*)*$x")), "normalizer.pattern"),
    "Replace by a megabyte": (normalizer(replace("x" * 2**20, Regex=" {2,}")), "normalizer.content"),
    "Prepend of a megabyte": (normalizer({"type": "Prepend", "prepend": "x" * 2**20}), "normalizer.prepend"),
    "Prepend many times": (normalizer(*[{"type": "Prepend", "prepend": "x"}] * 9), "Prepend"),
    "two Unicode forms": (normalizer({"type": "NFKC"}, {"type": "NFKD"}), "NFKD"),
    "normalizers in normalizers": (normalizer({"type": "NFC"}, {"type": "Sequence", "normalizers": []}), "Sequence"),
    "a hundred normalizers": (normalizer(*[replace("e", String="e")] * 100), "normalizer.normalizers"),
    "flag is a number": (tokenizer(lambda t: t["normalizer"].update(lowercase=1)), "normalizer.lowercase"),
    # --- the table of a Precompiled normalizer
    "character map is not base64": (
        normalizer({"type": "Precompiled", "precompiled_charsmap": "?"}),
        "normalizer.precompiled_charsmap",
    ),
    "character map is empty": (charsmap(b""), "precompiled_charsmap"),
    "character map claims 4 GB": (charsmap(b"\xff" * 64), "precompiled_charsmap"),
    "character map grows a text": (charsmap(units(0, replacements=b"x" * 999 + b"\0")), "precompiled_charsmap"),
    "character map has no end": (charsmap(units(0, replacements=b"x")), "precompiled_charsmap"),
    "character map is not UTF-8": (charsmap(units(0, replacements=b"\xff\0")), "precompiled_charsmap"),
    "character map leads out of its trie": (charsmap(units(2**30)), "precompiled_charsmap"),
    "character map leads out of its text": (charsmap(units(1 << 8 | 1 << 10, 99)), "precompiled_charsmap"),
    "character map leads into a character": (
        charsmap(units(1 << 8 | 1 << 10, 1, replacements="é\0".encode())),
        "precompiled_charsmap",
    ),
    # --- pre_tokenizer
    "unsupported pre-tokenizer": (pre_tokenizer({"type": "UnicodeScripts"}), "UnicodeScripts"),
    "Split that backtracks": (pre_tokenizer(split(Regex="(e+)+$")), "pre_tokenizer.pattern"),
    "Split by two patterns": (pre_tokenizer(split(String="a", Regex="b")), "pre_tokenizer.pattern"),
    "Split by a number": (pre_tokenizer(split() | {"pattern": 5}), "pre_tokenizer.pattern"),
    "ByteLevel many times": (pre_tokenizer(*[{"type": "ByteLevel"}] * 9), "ByteLevel"),
    "Metaspace of a word": (pre_tokenizer({"type": "Metaspace", "replacement": "xx"}), "pre_tokenizer.replacement"),
    # --- post_processor and decoder
    "no special tokens": (tokenizer(post_processor=None), "tokenizer.json"),
    "template with $A twice": (template(single=[CLS, A, A, SEP]), "post_processor.single"),
    "template without $A": (template(single=[CLS, SEP]), "post_processor.single"),
    "template with $B": (template(single=[CLS, B, SEP]), "post_processor.single"),
    "pair template without $B": (template(pair=[CLS, A, SEP]), "post_processor.pair"),
    "template of a number": (template(single=5), "post_processor.single"),
    "template with a number": (template(single=[5]), "post_processor.single"),
    "template of thousands": (template(single=[A, *[SEP] * 9999]), "post_processor.single"),
    "special token without an entry": (tokenizer(lambda t: special_tokens(t).clear()), "post_processor.single.id"),
    "special token of a million ids": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[1] * 10**6)),
        "special_tokens.ids",
    ),
    "special token without ids": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[])),
        "post_processor.special_tokens",
    ),
    "special token beyond the vocabulary": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[70_000])),
        "70000",
    ),
    "post-processor of another kind": (tokenizer(post_processor={"type": "RobertaProcessing"}), "RobertaProcessing"),
    "two templates": (
        tokenizer(lambda t: t.update(post_processor={"type": "Sequence", "processors": [t["post_processor"]] * 2})),
        "TemplateProcessing",
    ),
    "decoder of another kind": (tokenizer(decoder={"type": "CTC"}), "CTC"),
    # --- added_tokens
    "added tokens are an object": (tokenizer(added_tokens={}), "added_tokens"),
    "added token is empty": (added(content=""), "added_tokens.content"),
    "added token that normalization removes": (added(content="\u0301", normalized=True), "\u0301"),
    "added token of a megabyte": (added(content="x" * 2**20), "added_tokens.content"),
    "added token without a place": (added(id=-1), "added_tokens.id"),
    "20,000 added tokens": (tokenizer(added_tokens=[{}] * 20_000), "added_tokens"),
    # --- model
    "unsupported model": (model(type="WordLevel"), "WordLevel"),
    "no model": (tokenizer(model=None), "model"),
    "vocabulary of another model": (
        tokenizer(lambda t: t["model"]["vocab"].update({f"extra{i}": 2048 + i for i in range(5)})),
        "2052",
    ),
    "no unknown token": (model(unk_token="[NOT THERE]"), "NOT THERE"),
    "endless words": (model(max_input_chars_per_word=10**9), "model.max_input_chars_per_word"),
    "vocabulary is a number": (model(vocab=5), "model.vocab"),
    "vocabulary is a list": (model(vocab=[]), "model.vocab"),
    "vocabulary is empty": (model(vocab={}), "model.vocab"),
    "vocabulary of texts": (model(vocab={"[UNK]": "1"}), "model.vocab"),
    "vocabulary below zero": (model(vocab={"[UNK]": -1}), "model.vocab"),
    "ten megabytes of tokens": (model(vocab={"[UNK]": 0} | {f"{i:0>500}": i for i in range(20_000)}), "model.vocab"),
    "three megabytes of prefixes": (unigram(*([f"{i:0<500}", 0] for i in range(6000))), "model.vocab"),
    "token of a megabyte": (model(vocab={"[UNK]": 0, "x" * 2**20: 1}), "model.vocab"),
    "tokens drawn by chance": (bpe(dropout=0.5), "model.dropout"),
    "merge shorter than the prefix": (bpe(continuing_subword_prefix="###"), "model.continuing_subword_prefix"),
    "merge of three": (bpe(merges=["a b a"]), "a b a"),
    "merge of an unknown token": (bpe(merges=["a x"]), "a x"),
    "merge to an unknown token": (bpe(merges=["b b"]), "b b"),
    "missing field": (tokenizer(truncation={}), "tokenizer.json"),
    "Unigram without scores": (unigram("a"), "'a'"),
    "Unigram of NaN": (unigram(["a", float("nan")]), "nan"),
    "Unigram with an empty token": (unigram(["a", 0], ["", 0]), "model.vocab"),
    "Unigram without unknown": (unigram(["a", 0], unk_id=1), "model.unk_id"),
}
