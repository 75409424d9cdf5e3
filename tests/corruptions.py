"""Ways to corrupt a copied checkpoint: each returns a function of the directory."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import write_json, write_modules
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QKV = "new.encoder.layer.0.attention.qkv_proj.weight"

Corruption = Callable[[Path], object]


def edited(file: str, **changes: Any) -> Corruption:
    """Sets fields of a JSON object; `...` removes one."""

    def corrupt(path: Path) -> None:
        fields = json.loads((path / file).read_text()) | changes
        write_json(path / file, {name: value for name, value in fields.items() if value is not ...})

    return corrupt


def config(**changes: Any) -> Corruption:
    return edited("config.json", **changes)


def settings(**changes: Any) -> Corruption:
    return edited("config_sentence_transformers.json", **changes)


def max_seq_length(value: Any) -> Corruption:
    return edited("sentence_bert_config.json", max_seq_length=value)


def model_max_length(value: Any) -> Corruption:
    """In the tokenizer's settings, which count where sentence_bert_config.json has no limit."""

    def apply(path: Path) -> None:
        (path / "sentence_bert_config.json").unlink()
        write_json(path / "tokenizer_config.json", {"model_max_length": value})

    return apply


def pooling(**flags: Any) -> Corruption:
    return lambda path: write_json(path / "1_Pooling/config.json", {"word_embedding_dimension": 64} | flags)


def dense(**changes: Any) -> Corruption:
    return edited("2_Dense_64/config.json", **changes)


def modules(*kinds: str) -> Corruption:
    """modules.json with entries "CLASS:FOLDER"."""
    return lambda path: write_modules(path, *kinds)


def written(file: str, content: bytes | str) -> Corruption:
    return lambda path: (path / file).write_bytes(content.encode() if isinstance(content, str) else content)


def removed(file: str) -> Corruption:
    return lambda path: (path / file).unlink()


def truncated(file: str, by: int) -> Corruption:
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:-by])


def tensors(change: Callable[[dict[str, np.ndarray]], object], file: str = WEIGHTS) -> Corruption:
    """Rewrites a safetensors file after changing its tensors in place."""

    def corrupt(path: Path) -> None:
        arrays = load_file(path / file)
        change(arrays)
        save_file(arrays, path / file)

    return corrupt


def header(change: Callable[[str], str]) -> Corruption:
    """Changes the text of the header, data untouched."""

    def corrupt(path: Path) -> None:
        raw = (path / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        text = change(raw[8 : 8 + size].decode()).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return corrupt


def sharded(change: Callable[[Path], object]) -> Corruption:
    """Splits the weights in two shards under an index, then corrupts them."""

    def corrupt(path: Path) -> None:
        arrays = load_file(path / WEIGHTS)
        (path / WEIGHTS).unlink()
        names = sorted(arrays)
        shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
        for shard, members in shards.items():
            save_file({name: arrays[name] for name in members}, path / shard)
        write_json(path / INDEX, {"weight_map": {name: shard for shard, ns in shards.items() for name in ns}})
        change(path)

    return corrupt


def pointed_at(target: str) -> Corruption:
    """Points the index's first tensor at another file."""

    def change(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        index["weight_map"][min(index["weight_map"])] = target
        write_json(path / INDEX, index)

    return sharded(change)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def folder(file: str) -> Corruption:
    return lambda path: (remove(path / file), (path / file).mkdir())


def pipe(file: str) -> Corruption:
    """A pipe in place of the file; opening it would block forever."""
    return lambda path: (remove(path / file), os.mkfifo(path / file))


def linked(file: str, target: str) -> Corruption:
    return lambda path: (remove(path / file), (path / file).symlink_to(target))


def moved_out(file: str) -> Corruption:
    """Moves a file or folder out of the checkpoint and links to it."""

    def corrupt(path: Path) -> None:
        (path / file).rename(path.parent / "outside")
        (path / file).symlink_to(path.parent / "outside")

    return corrupt


def extended(file: str, size: int) -> Corruption:
    """Extends a file to `size` bytes, sparsely."""
    return lambda path: os.truncate(path / file, size)


def only_bin(path: Path) -> None:
    (path / WEIGHTS).rename(path / "pytorch_model.bin")


def link_loop(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("config.json")


def duplicated_across_shards(path: Path) -> None:
    arrays = load_file(path / "a.safetensors")
    save_file(load_file(path / "b.safetensors") | dict([next(iter(arrays.items()))]), path / "b.safetensors")


def every_mismatch(arrays: dict[str, np.ndarray]) -> None:
    del arrays["new.embeddings.LayerNorm.bias"]
    arrays["new.pooler.dense.weight"] = np.zeros((2, 2), np.float32)
    arrays[QKV] = arrays[QKV][:-1]
    arrays["new.encoder.layer.1.mlp_ln.weight"] = np.zeros(64, np.int8)


def tokenizer(change: Callable[[dict[str, Any]], object] = lambda fields: None, **parts: Any) -> Corruption:
    """Changes the parsed tokenizer.json in place, or replaces its parts."""

    def corrupt(path: Path) -> None:
        fields = json.loads((path / "tokenizer.json").read_text())
        change(fields)
        write_json(path / "tokenizer.json", fields | parts)

    return corrupt


def special_tokens(fields: dict[str, Any]) -> dict[str, Any]:
    return fields["post_processor"]["special_tokens"]


def with_value(array: np.ndarray, value: float) -> None:
    array.flat[array.size // 2] = value


def assert_readable(message: str) -> None:
    """One sentence, or a title and a list under it, that a person can read on a terminal."""
    lines = message.splitlines()
    assert all(len(line) <= 500 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:]), "more than one sentence"
    assert not any(word in message for word in ("Traceback", "Error(", "NoneType", "object at 0x"))
    assert all(line.isprintable() for line in lines)
