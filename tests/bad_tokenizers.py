"""Files of a tokenizer that are damaged, hostile or of another kind, and what the error says of each."""

import base64
from typing import Any

from damage import Damage, cut, folder, grown, linked, pipe, removed, special_tokens, tokenizer, written

FILE = "tokenizer.json"
A, B = ({"Sequence": {"id": id, "type_id": 0}} for id in "AB")
CLS, SEP = ({"SpecialToken": {"id": id, "type_id": 0}} for id in ("[CLS]", "[SEP]"))


def template(**pieces: Any) -> Damage:
    return tokenizer(lambda fields: fields["post_processor"].update(pieces))


def model(**fields: Any) -> Damage:
    return tokenizer(lambda parts: parts["model"].update(fields))


def normalizer(*parts: dict[str, Any]) -> Damage:
    return tokenizer(normalizer={"type": "Sequence", "normalizers": [*parts]} if len(parts) != 1 else parts[0])


def pre_tokenizer(*parts: dict[str, Any]) -> Damage:
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [*parts]} if len(parts) != 1 else parts[0])


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(**pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def charsmap(blob: bytes) -> Damage:
    return normalizer({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()})


def added(**fields: Any) -> Damage:
    token = {"id": 9, "content": "x", "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return tokenizer(lambda parts: parts["added_tokens"].append(token | fields))


def unigram(*vocabulary: Any, **fields: Any) -> Damage:
    return tokenizer(model={"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [*vocabulary]} | fields)


def bpe(**fields: Any) -> Damage:
    return tokenizer(model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]} | fields)


def units(*values: int, replacements: bytes = b"x\0") -> bytes:
    """A character map of one block of units."""
    trie = b"".join(value.to_bytes(4, "little") for value in (*values, *[0] * (256 - len(values))))
    return len(trie).to_bytes(4, "little") + trie + replacements


TOKENIZERS: dict[str, tuple[Damage, str]] = {
    # --- the file
    "missing": (removed(FILE), r"tokenizer\.json is missing"),
    "broken": (cut(FILE, 500), r"tokenizer\.json: not JSON"),
    "no text": (written(FILE, b"\xff\x00\x80"), r"tokenizer\.json: not JSON"),
    "empty": (written(FILE, ""), r"tokenizer\.json: not JSON"),
    "nested without end": (written(FILE, "[" * 10**6), r"tokenizer\.json: not JSON"),
    "a list": (written(FILE, "[]"), r"tokenizer\.json: the file must hold an object, not \[\]"),
    "a folder": (folder(FILE), r"tokenizer\.json: a folder, not a file"),
    "a pipe": (pipe(FILE), r"tokenizer\.json: a pipe or a device, not a file"),
    "endless zeros": (linked(FILE, "/dev/zero"), r"'tokenizer\.json' leads out of"),
    "a terabyte": (grown(FILE, 2**40), r"tokenizer\.json: \d+ bytes, and \d+ are allowed"),
    "five million values": (written(FILE, "[" + "1," * 5 * 10**6 + "1]"), r"tokenizer\.json: more than \d+ values"),
    "two million objects": (written(FILE, "[" + "{}," * 10**6 + "1]"), r"tokenizer\.json: more than \d+ values or"),
    "a name twice": (
        lambda path: (path / FILE).write_text('{"model": 1, ' + (path / FILE).read_text()[1:]),
        r"tokenizer\.json: the name 'model' stands twice",
    ),
    "unknown field": (tokenizer(post_procesor=None), r"tokenizer\.json: post_procesor is unknown"),
    "unknown field of a megabyte": (
        tokenizer(lambda t: t.update({"x" * 10**6: 1})),
        r"tokenizer\.json: 'x+\.\.\. is unknown",
    ),
    # --- normalizer
    "normalizer of another kind": (normalizer({"type": "ByteLevel"}), r"normalizer 'ByteLevel' is not supported"),
    "normalizer without a kind": (normalizer({"lowercase": True}), r"normalizer None is not supported"),
    "normalizer is a list": (tokenizer(normalizer=[]), r"normalizer None is not supported"),
    "Replace that grows": (normalizer(replace("x" * 16, String="e")), r"normalizer\.content = 'x+' is longer"),
    "Replace of nothing": (normalizer(replace("x", String="")), r"normalizer\.pattern = .* must be a plain string"),
    "Replace that backtracks": (normalizer(replace("", Regex="(e*)*$x")), r"normalizer\.pattern = .* must be"),
    "Replace by a megabyte": (normalizer(replace("x" * 2**20, Regex=" {2,}")), r"normalizer\.content = 'x+\.\.\."),
    "Prepend of a megabyte": (normalizer({"type": "Prepend", "prepend": "x" * 2**20}), r"normalizer\.prepend = 'x+"),
    "Prepend again and again": (
        normalizer(*[{"type": "Prepend", "prepend": "x"}] * 9),
        r"has Prepend twice",
    ),
    "two Unicode forms": (normalizer({"type": "NFKC"}, {"type": "NFKD"}), r"normalizer has NFKC and NFKD"),
    "normalizers in normalizers": (
        normalizer({"type": "NFC"}, {"type": "Sequence", "normalizers": []}),
        r"normalizer 'Sequence' is not supported",
    ),
    "a hundred normalizers": (normalizer(*[replace("e", String="e")] * 100), r"normalizer\.normalizers = .* 16 pieces"),
    "flag is a number": (tokenizer(lambda t: t["normalizer"].update(lowercase=1)), r"normalizer\.lowercase = 1 must"),
    # --- the table of a Precompiled normalizer
    "character map is no base64": (
        normalizer({"type": "Precompiled", "precompiled_charsmap": "?"}),
        r"normalizer\.precompiled_charsmap is not base64",
    ),
    "character map is empty": (charsmap(b""), r"precompiled_charsmap is cut off"),
    "character map claims 4 GB": (charsmap(b"\xff" * 64), r"precompiled_charsmap is cut off"),
    "character map grows a text": (charsmap(units(0, replacements=b"x" * 999 + b"\0")), r"replacement of more than"),
    "character map has no end": (charsmap(units(0, replacements=b"x")), r"precompiled_charsmap is cut off"),
    "character map is no UTF-8": (charsmap(units(0, replacements=b"\xff\0")), r"precompiled_charsmap is not UTF-8"),
    "character map leads out of its trie": (charsmap(units(2**30)), r"trie that leads out of itself"),
    "character map leads out of its text": (charsmap(units(1 << 8 | 1 << 10, 99)), r"leads out of its replacements"),
    "character map leads into a character": (
        charsmap(units(1 << 8 | 1 << 10, 1, replacements="é\0".encode())),
        r"leads out of its replacements",
    ),
    # --- pre_tokenizer
    "pre-tokenizer of another kind": (pre_tokenizer({"type": "UnicodeScripts"}), r"'UnicodeScripts' is not supported"),
    "Split that backtracks": (pre_tokenizer(split(Regex="(e+)+$")), r"pre_tokenizer\.pattern = .* must be a plain"),
    "Split by two patterns": (pre_tokenizer(split(String="a", Regex="b")), r"pre_tokenizer\.pattern = .* must be"),
    "Split by a number": (pre_tokenizer(split() | {"pattern": 5}), r"pre_tokenizer\.pattern = 5 must be"),
    "ByteLevel again and again": (pre_tokenizer(*[{"type": "ByteLevel"}] * 9), r"pre_tokenizer has ByteLevel twice"),
    "Metaspace of a word": (pre_tokenizer({"type": "Metaspace", "replacement": "xx"}), r"pre_tokenizer\.replacement"),
    # --- post_processor and decoder
    "no special tokens": (tokenizer(post_processor=None), r"tokenizer\.json adds no special tokens"),
    "template with $A twice": (template(single=[CLS, A, A, SEP]), r"post_processor\.single must have \$A once"),
    "template without $A": (template(single=[CLS, SEP]), r"post_processor\.single must have \$A once"),
    "template with $B": (template(single=[CLS, B, SEP]), r"post_processor\.single must have \$A once"),
    "pair template without $B": (template(pair=[CLS, A, SEP]), r"post_processor\.pair must have \$A and \$B once"),
    "template of a number": (template(single=5), r"post_processor\.single = 5 must be a list"),
    "template with a number": (template(single=[5]), r"post_processor\.single has a piece 5"),
    "template of thousands": (template(single=[A, *[SEP] * 9999]), r"post_processor\.single = .* 16 pieces"),
    "special token without an entry": (
        tokenizer(lambda t: special_tokens(t).clear()),
        r"post_processor\.single\.id = '\[CLS\]' must be none",
    ),
    "special token of a million ids": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[1] * 10**6)),
        r"post_processor\.special_tokens\.ids = .* 16 pieces",
    ),
    "special token without ids": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[])),
        r"post_processor\.special_tokens: '\[CLS\]' must have as many ids as tokens",
    ),
    "special token beyond the vocabulary": (
        tokenizer(lambda t: special_tokens(t)["[CLS]"].update(ids=[70_000])),
        r"token ids up to 70000",
    ),
    "post-processor of another kind": (
        tokenizer(post_processor={"type": "RobertaProcessing"}),
        r"post_processor 'RobertaProcessing' is not supported",
    ),
    "two templates": (
        tokenizer(lambda t: t.update(post_processor={"type": "Sequence", "processors": [t["post_processor"]] * 2})),
        r"post_processor has TemplateProcessing twice",
    ),
    "decoder of another kind": (tokenizer(decoder={"type": "CTC"}), r"decoder 'CTC' is not supported"),
    # --- added_tokens
    "added tokens are an object": (tokenizer(added_tokens={}), r"added_tokens = \{\} must be a list"),
    "added token is empty": (added(content=""), r"added_tokens\.content = '' must be a text of 1 to"),
    "added token of what is taken out": (added(content="\u0301", normalized=True), r"left of the added token '\u0301'"),
    "added token of a megabyte": (added(content="x" * 2**20), r"added_tokens\.content = 'x+\.\.\. must be"),
    "added token without a place": (added(id=-1), r"added_tokens\.id = -1 must be"),
    "20,000 added tokens": (tokenizer(added_tokens=[{}] * 20_000), r"added_tokens has 20000 tokens"),
    # --- model
    "model of another kind": (model(type="WordLevel"), r"model 'WordLevel' is not supported"),
    "no model": (tokenizer(model=None), r"model None is not supported"),
    "vocabulary of another model": (
        tokenizer(lambda t: t["model"]["vocab"].update({f"extra{i}": 2048 + i for i in range(5)})),
        r"token ids up to 2052, but config\.json's vocab_size is 2048",
    ),
    "no unknown token": (model(unk_token="[NOT THERE]"), r"model\.unk_token '\[NOT THERE\]' is not in model\.vocab"),
    "words without end": (model(max_input_chars_per_word=10**9), r"model\.max_input_chars_per_word = 10+ must be"),
    "vocabulary is a number": (model(vocab=5), r"model\.vocab = 5 must be an object or a list"),
    "vocabulary is a list": (model(vocab=[]), r"model\.vocab must be an object"),
    "vocabulary is empty": (model(vocab={}), r"model\.vocab must be an object of 1 to"),
    "vocabulary of texts": (model(vocab={"[UNK]": "1"}), r"model\.vocab must give each token a whole number"),
    "vocabulary below zero": (model(vocab={"[UNK]": -1}), r"model\.vocab must give each token a whole number"),
    "ten megabytes of tokens": (
        model(vocab={"[UNK]": 0} | {f"{i:0>500}": i for i in range(20_000)}),
        r"model\.vocab has \d+ bytes, and",
    ),
    "three megabytes of beginnings": (
        unigram(*([f"{i:0<500}", 0] for i in range(6000))),
        r"model\.vocab has more than \d+ different beginnings",
    ),
    "token of a megabyte": (model(vocab={"[UNK]": 0, "x" * 2**20: 1}), r"model\.vocab has a token of more than"),
    "tokens drawn by chance": (bpe(dropout=0.5), r"model\.dropout = 0\.5 must be null"),
    "merge of what is shorter than a prefix": (
        bpe(continuing_subword_prefix="###"),
        r"model\.continuing_subword_prefix = '###' must be null",
    ),
    "merge of three": (bpe(merges=["a b a"]), r"model\.merges holds 'a b a', not two tokens"),
    "merge of an unknown token": (bpe(merges=["a x"]), r"model\.merges holds 'a x', of which model\.vocab lacks"),
    "merge to an unknown token": (bpe(merges=["b b"]), r"model\.merges holds 'b b', of which model\.vocab lacks"),
    "missing field": (tokenizer(truncation={}), r"tokenizers library cannot use it: .*missing field"),
    "Unigram without scores": (unigram("a"), r"model\.vocab holds 'a', not a token and its score"),
    "Unigram of NaN": (unigram(["a", float("nan")]), r"model\.vocab: \['a', nan\] has no token, or a score"),
    "Unigram with an empty token": (unigram(["a", 0], ["", 0]), r"model\.vocab: \['', 0\] has no token"),
    "Unigram without unknown": (unigram(["a", 0], unk_id=1), r"model\.unk_id = 1 must be a place in model\.vocab"),
}
