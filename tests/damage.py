"""Ways to damage a copied checkpoint: each makes a function of its directory."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stella_jax import Stella, StellaError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QKV = "new.encoder.layer.0.attention.qkv_proj.weight"

Damage = Callable[[Path], object]


def edited(file: str, **changes: Any) -> Damage:
    """Sets fields of a JSON object; `...` removes one."""

    def damage(path: Path) -> None:
        fields = json.loads((path / file).read_text()) | changes
        write_json(path / file, {name: value for name, value in fields.items() if value is not ...})

    return damage


def config(**changes: Any) -> Damage:
    return edited("config.json", **changes)


def settings(**changes: Any) -> Damage:
    return edited("config_sentence_transformers.json", **changes)


def longest(value: Any) -> Damage:
    return edited("sentence_bert_config.json", max_seq_length=value)


def pooling(**flags: Any) -> Damage:
    return lambda path: write_json(path / "1_Pooling/config.json", {"word_embedding_dimension": 64} | flags)


def dense(**changes: Any) -> Damage:
    return edited("2_Dense_64/config.json", **changes)


def modules(*kinds: str) -> Damage:
    """modules.json with these class names, each in the folder that follows its colon."""
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in map(_split, kinds)]
    return lambda path: write_json(path / "modules.json", entries)


def _split(kind: str) -> tuple[str, str]:
    name, _, folder = kind.partition(":")
    return name, folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def written(file: str, content: bytes | str) -> Damage:
    return lambda path: (path / file).write_bytes(content.encode() if isinstance(content, str) else content)


def removed(file: str) -> Damage:
    return lambda path: (path / file).unlink()


def cut(file: str, by: int) -> Damage:
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:-by])


def tensors(change: Callable[[dict[str, np.ndarray]], object], file: str = WEIGHTS) -> Damage:
    """Rewrites a safetensors file after changing its tensors in place."""

    def damage(path: Path) -> None:
        arrays = load_file(path / file)
        change(arrays)
        save_file(arrays, path / file)

    return damage


def header(change: Callable[[str], str]) -> Damage:
    """Changes the text of the header, data untouched."""

    def damage(path: Path) -> None:
        raw = (path / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        text = change(raw[8 : 8 + size].decode()).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return damage


def sharded(change: Callable[[Path], object]) -> Damage:
    """Splits the weights in two shards under an index, then damages them."""

    def damage(path: Path) -> None:
        arrays = load_file(path / WEIGHTS)
        (path / WEIGHTS).unlink()
        names = sorted(arrays)
        shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
        for shard, members in shards.items():
            save_file({name: arrays[name] for name in members}, path / shard)
        write_json(path / INDEX, {"weight_map": {name: shard for shard, ns in shards.items() for name in ns}})
        change(path)

    return damage


def pointed_at(target: str) -> Damage:
    """An index whose first tensor lies in another file."""

    def change(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        index["weight_map"][min(index["weight_map"])] = target.format(path=path)
        write_json(path / INDEX, index)

    return sharded(change)


def gone(path: Path) -> None:
    """Whatever is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def folder(file: str) -> Damage:
    return lambda path: (gone(path / file), (path / file).mkdir())


def pipe(file: str) -> Damage:
    """Whoever opens it waits for ever."""
    return lambda path: (gone(path / file), os.mkfifo(path / file))


def linked(file: str, target: str) -> Damage:
    return lambda path: (gone(path / file), (path / file).symlink_to(target))


def moved_out(file: str) -> Damage:
    """A link to where the file, or folder, now lies: outside."""

    def damage(path: Path) -> None:
        (path / file).rename(path.parent / "outside")
        (path / file).symlink_to(path.parent / "outside")

    return damage


def grown(file: str, size: int) -> Damage:
    """A file of that many bytes, which takes no room on the disk."""
    return lambda path: os.truncate(path / file, size)


def only_bin(path: Path) -> None:
    (path / WEIGHTS).rename(path / "pytorch_model.bin")


def link_loop(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("config.json")


def duplicated_across_shards(path: Path) -> None:
    arrays = load_file(path / "a.safetensors")
    save_file(load_file(path / "b.safetensors") | dict([next(iter(arrays.items()))]), path / "b.safetensors")


def every_fault_at_once(arrays: dict[str, np.ndarray]) -> None:
    del arrays["new.embeddings.LayerNorm.bias"]
    arrays["new.pooler.dense.weight"] = np.zeros((2, 2), np.float32)
    arrays[QKV] = arrays[QKV][:-1]
    arrays["new.encoder.layer.1.mlp_ln.weight"] = np.zeros(64, np.int8)


def tokenizer(change: Callable[[dict[str, Any]], object] = lambda fields: None, **parts: Any) -> Damage:
    """Changes the parsed tokenizer.json in place, or replaces its parts."""

    def damage(path: Path) -> None:
        fields = json.loads((path / "tokenizer.json").read_text())
        change(fields)
        write_json(path / "tokenizer.json", fields | parts)

    return damage


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


def assert_refused(path: Path, damage: Damage, expected: str) -> None:
    """The checkpoint at `path`, once damaged, is refused with a readable message that the pattern is found in."""
    damage(path)
    with pytest.raises(StellaError, match=expected) as error:
        Stella.from_pretrained(path, dtype="float32").tokenizer.encode(["Green tea " * 100])
    assert_readable(str(error.value))
