"""Mutates the files of valid checkpoints and loads them, in a process with limits; each seed gives one mutation.

python mutations.py KIND FIRST_SEED COUNT SOURCE...

Every mutated checkpoint must load, or be refused in a readable sentence. SIGALRM ends a process that hangs, an error
one that takes too much memory; the last line on stdout is the seed at fault, or a summary. A new kind of mutation is a
row in KINDS.
"""

import ctypes
import json
import math
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from corruptions import assert_readable, remove

from stella_jax import StellaError
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.tokenizer.accepted_parts import (
    MAX_TOKEN_LENGTH,
    MODELS,
    NORMALIZERS,
    POST_PROCESSORS,
    PRE_TOKENIZERS,
    SPLIT_PATTERNS,
    Fields,
)
from stella_jax.tokenizer.json_file import MAX_ADDED, MAX_BYTES, MAX_COMMAS, MAX_TRIE_NODES

SECONDS = 20
# Kinds whose mutations take seconds each: their largest counts.
FEW = {"largest tokenizers": 12}
LIMIT = 2**30  # bytes of memory that loading may take beyond the valid model's

TEXTS = [
    "",
    "Green tea, [SEP] </s><|endoftext|> it's",
    "x" * 5000,
    "\ufdfa\u4eac\u0130 e\u0301\0\u200b" * 500,
    " " * 9999,
]

# A pipe that links lead to: opening it blocks until the alarm.
OUTSIDE = "outside"

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    math.nan,
    "",
    "..",
    "/",
    "\0",
    "\ud800",
    "$A",
    "x",
]
ODD += ["x" * 100_000, [], {}, [[]] * 10_000, ["a", "b"], {"type": "Sequence"}, {"Regex": "(x+x+)+y"}, {"String": "x"}]

# Allowed and forbidden values for fields of a tokenizer's parts.
VALUES: list[Any] = [None, True, False, 0, 1, 100, "", "x", " ", "\u2581", "\u0301", "x" * 16, "[UNK]", [], {}]
VALUES += ["always", "first", "never", "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
VALUES += [{"Regex": regex} for regex in (" {2,}", *SPLIT_PATTERNS, "(x+x+)+y")]
VALUES += [{"String": text} for text in ("x", " ", "xx", "\u0301", "", "x" * 1000)]

CHAINS = {
    "normalizer": (NORMALIZERS, "normalizers"),
    "pre_tokenizer": (PRE_TOKENIZERS, "pretokenizers"),
    "post_processor": (POST_PROCESSORS, "processors"),
}
VOCABULARIES: dict[str, list[Any]] = {
    "WordPiece": [{"[UNK]": 0, "x": 1, "##x": 2, "\u2581": 3, " ": 4}, {"[UNK]": 0}],
    "BPE": [{"x": 0, "xx": 1, "\u0120": 2, "[UNK]": 3}, {"": 0, "x": 1}],
    "Unigram": [[["[UNK]", 0.0], ["x", -1.0], ["xx", -1e6], ["\u2581", 1e6]], [["x", 0]]],
}

Mutation = Callable[[Path, Random], object]


def files(path: Path, *patterns: str) -> list[Path]:
    return sorted(file for pattern in patterns for file in path.rglob(pattern) if file.is_file())


def mutated_bytes(content: bytes, random: Random, within: int | None = None) -> bytes:
    """The content with a few bytes replaced, removed, doubled or inserted."""
    for _ in range(random.randint(1, 4)):
        at = random.randrange(min(len(content), within or len(content)) + 1)
        size = random.choice((0, 1, 1, 2, 8, 64))
        new = random.choice(
            (random.randbytes(random.choice((0, 1, 2, 8))), content[at : at + size] * 2, b'"', b"}", b"9")
        )
        content = content[:at] + new + content[at + size :]
    return content


def node(value: Any, random: Random) -> tuple[Any, Any]:
    """A nested list or object and one of its keys; deep ones are rare."""
    while True:
        place = random.choice(sorted(value)) if isinstance(value, dict) else random.randrange(len(value))
        below = value[place]
        if not isinstance(below, dict | list) or not below or random.random() < 0.3:
            return value, place
        value = below


def mutated_json(value: Any, random: Random) -> Any:
    """A parsed file with a few values replaced, removed, repeated, swapped or nested."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not isinstance(value, dict | list) or not value:
            return value
        (owner, place), (other, there) = node(value, random), node(value, random)
        kind = random.randrange(7)
        if kind == 0:
            del owner[place]
        elif kind == 1:
            owner[place], other[there] = other[there], owner[place]
        elif kind == 2 and isinstance(owner, list):
            owner.extend([owner[place]] * random.choice((1, 30, 3000)))
        elif kind == 3 and isinstance(owner, dict):
            owner[random.choice(("", "type", "x", "\ud800", "vocab", "x" * 1000))] = owner.pop(place)
        elif kind == 4:
            owner[place] = random.choice(([owner[place]], {"type": "Sequence", "normalizers": [owner[place]]}))
        else:
            owner[place] = random.choice(ODD)
    return value


def rewrite(file: Path, random: Random) -> None:
    try:
        text = json.dumps(mutated_json(json.loads(file.read_bytes()), random))
    except ValueError:  # a value that contains itself, or a number with too many digits
        text = "[" * random.randrange(1, 100_000)
    file.write_text(text)


def settings(path: Path, random: Random) -> None:
    rewrite(random.choice([file for file in files(path, "*.json") if file.name != "tokenizer.json"]), random)


def any_json_bytes(path: Path, random: Random) -> None:
    file = random.choice(files(path, "*.json", ".zarray"))
    file.write_bytes(mutated_bytes(file.read_bytes(), random))


def header_bytes(path: Path, random: Random) -> None:
    file = random.choice(files(path, "*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(mutated_bytes(content, random, 8 + struct.unpack("<Q", content[:8])[0]))


def header_json(path: Path, random: Random) -> None:
    """Changes the header and sometimes its size; the numbers after it stay."""
    file = random.choice(files(path, "*.safetensors"))
    content = file.read_bytes()
    size = 8 + struct.unpack("<Q", content[:8])[0]
    try:
        header = json.dumps(mutated_json(json.loads(content[8:size]), random)).encode()
    except ValueError:
        header = b"[]"
    claimed = random.choice((len(header), len(header), len(header), 2 ** random.randrange(64)))
    file.write_bytes(struct.pack("<Q", claimed) + header + content[size:])


def numbers(path: Path, random: Random) -> None:
    file = random.choice(files(path, "*.safetensors"))
    file.write_bytes(mutated_bytes(file.read_bytes(), random))


def tokenizer_json(path: Path, random: Random) -> None:
    rewrite(path / "tokenizer.json", random)


def tokenizer_bytes(path: Path, random: Random) -> None:
    file = path / "tokenizer.json"
    file.write_bytes(mutated_bytes(file.read_bytes(), random, random.choice((None, 6000))))


def part(kinds: Mapping[str, Fields], kind: str, random: Random) -> dict[str, Any]:
    """A part with allowed values in its fields; one field in thirty gets any value."""
    fields = {}
    for name, field in kinds[kind].items():
        values = VALUES if random.random() < 0.03 else [value for value in VALUES if field.accepts(value)]
        fields[name] = random.choice(values or VALUES)
    return {"type": kind} | fields


def tokenizer_parts(path: Path, random: Random) -> None:
    """Adds allowed parts, in any order and number, to the parts of the file."""
    file = path / "tokenizer.json"
    fields = json.loads(file.read_bytes())
    for name, (kinds, members) in CHAINS.items():
        chosen = random.sample(sorted(kinds), random.choice((0, 1, 1, 2, 3)) % len(kinds))
        parts = [part(kinds, kind, random) for kind in chosen if kind != "TemplateProcessing"]
        parts += [fields[name]] if name == "post_processor" or random.random() < 0.3 else []
        random.shuffle(parts)
        fields[name] = parts[0] if len(parts) == 1 else {"type": "Sequence", members: parts}
    if random.random() < 0.5:
        kind = random.choice(sorted(MODELS))
        fields["model"] = part(MODELS, kind, random) | {"vocab": random.choice(VOCABULARIES[kind])}
        fields["model"] |= {"merges": random.choice(([], ["x x"], [["x", "x"]]))} if kind == "BPE" else {}
    for _ in range(random.choice((0, 0, 1, 2))):
        token = {"id": random.choice((0, 5, 2**20)), "content": random.choice(("x", " ", "\u0301", "\u2581", "\0"))}
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        fields["added_tokens"].append(token | {flag: random.random() < 0.5 for flag in flags})
    file.write_text(json.dumps(fields if random.random() < 0.8 else mutated_json(fields, random)))


def largest_tokenizer(path: Path, random: Random) -> None:
    """Fills the file with nearly as much of something as is accepted."""
    file = path / "tokenizer.json"
    fields = json.loads(file.read_bytes())
    size = random.choice((9, 60, MAX_TOKEN_LENGTH))
    letters = random.choice(("abcdefghijklmnopqrstuvwxyz", "\u4e00\u4e01\u4e02\u4e03\u4e04\u4e05\u4e06"))
    count = MAX_TRIE_NODES // (size * len(letters[0].encode())) - 9
    words = sorted({"".join(random.choices(letters, k=size)) for _ in range(count)})
    kind = random.randrange(5)
    if kind == 0:
        vocabulary = [["[UNK]", 0.0], *([word, -1.0] for word in words)]
        fields["model"] = {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": vocabulary}
    elif kind == 1:
        fields["model"] = {"type": "BPE", "merges": [], "vocab": {word: i % 999 for i, word in enumerate(words)}}
    elif kind == 2:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), random.random() < 0.5)
        words = [word[:25] for word in words[:MAX_ADDED]]
        fields["added_tokens"] = [{"id": 5, "content": word} | flags for word in words]
    if random.random() < 0.5:  # with this character, Python stores all of the text's characters in four bytes each
        fields["added_tokens"].append(fields["added_tokens"][0] | {"content": "\U0001fa00"})
    text = json.dumps(fields, ensure_ascii=False)
    if kind > 2:
        text = "[" + ",".join([random.choice(("[]", "[0]", '"xx"', "1e1"))] * (MAX_COMMAS - 9)) + ",{}" * 9 + "]"
    file.write_text(text + " " * (MAX_BYTES - len(text.encode())))


def leaf_headers(path: Path, random: Random) -> None:
    rewrite(random.choice(files(path, ".zarray")), random)


def leaf_bytes(path: Path, random: Random) -> None:
    file = random.choice(files(path / "params", "*"))
    file.write_bytes(mutated_bytes(file.read_bytes(), random))


def entries(path: Path, random: Random) -> None:
    """Removes, moves, truncates or replaces a file or folder."""
    entry = random.choice(sorted(entry for entry in path.rglob("*") if "expected" not in entry.name))
    other = random.choice(sorted(path.rglob("*")))
    targets = ("/dev/zero", path.parent / OUTSIDE, path.parent, "nowhere", entry.name, other, "/proc/self/environ", "/")
    kind = random.randrange(6)
    if kind == 0 and entry.is_file():
        os.truncate(entry, random.choice((0, 1, entry.stat().st_size // 2, 2**40)))
    elif kind == 1 and not other.is_relative_to(entry) and not entry.is_relative_to(other):
        remove(other)
        entry.rename(other)
    else:
        remove(entry)
        if kind == 2:
            os.mkfifo(entry)
        elif kind == 3:
            entry.mkdir()
        elif kind == 4:
            entry.symlink_to(random.choice(targets))


# Kind -> the mutation, and the layout of the checkpoints that it mutates.
KINDS: dict[str, tuple[Mutation, str]] = {
    "settings": (settings, "torch"),
    "bytes of JSON": (any_json_bytes, "torch"),
    "safetensors headers": (header_json, "torch"),
    "bytes of safetensors headers": (header_bytes, "torch"),
    "bytes of safetensors files": (numbers, "torch"),
    "tokenizers": (tokenizer_json, "torch"),
    "parts of tokenizers": (tokenizer_parts, "torch"),
    "bytes of tokenizers": (tokenizer_bytes, "torch"),
    "largest tokenizers": (largest_tokenizer, "torch"),
    "files and folders": (entries, "torch"),
    "Orbax headers": (leaf_headers, "flax"),
    "bytes of Orbax files": (leaf_bytes, "flax"),
    "settings of a converted checkpoint": (settings, "flax"),
    "files and folders of a converted checkpoint": (entries, "flax"),
}


def use(path: Path) -> bool:
    """Reads all of a checkpoint; False if it is refused."""
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.tokenizer().encode(TEXTS)
        for leaf in checkpoint.weights.leaves:
            checkpoint.weights.read(leaf)
    except StellaError as error:
        assert_readable(str(error))
        return False
    return True


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def mutated(kind: str, seeds: range, sources: list[Path]) -> Iterator[tuple[int, Path]]:
    """Yields each seed and its checkpoint, which is removed before the next."""
    mutate, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(Path(folder) / OUTSIDE)
        for seed in seeds:
            random, path = Random(f"{kind} {seed}"), Path(folder) / "checkpoint"
            shutil.copytree(random.choice(sources), path)
            mutate(path, random)
            yield seed, path
            shutil.rmtree(path)
            assert os.listdir(folder) == [OUTSIDE]


def reset_peak_memory() -> None:
    """Returns free memory to the system and resets its record of the peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main(kind: str, first: str, count: str, *sources: str) -> None:
    assert all(use(Path(source)) for source in sources)
    before, peak, loaded = status("VmRSS"), 0, 0
    most = status("VmData") + 2 * LIMIT
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    for seed, path in mutated(kind, range(int(first), int(first) + int(count)), [*map(Path, sources)]):
        print(seed, flush=True)
        reset_peak_memory()
        signal.alarm(SECONDS)
        loaded += use(path)
        signal.alarm(0)
        peak = max(peak, status("VmHWM") - before)
        assert peak < LIMIT
    print(f"{count} mutations, {loaded} loaded; {peak >> 20} MiB above the model")


if __name__ == "__main__":
    main(*sys.argv[1:])
