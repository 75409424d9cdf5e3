"""Damaged, incomplete, hostile or unsupported weights, and what the error names for each."""

import os
import struct

import numpy as np
from checkpoint_files import write_json
from corruptions import (
    INDEX,
    QKV,
    WEIGHTS,
    Corruption,
    duplicated_across_shards,
    every_mismatch,
    extended,
    folder,
    header,
    linked,
    moved_out,
    only_bin,
    pipe,
    pointed_at,
    removed,
    sharded,
    tensors,
    truncated,
    with_value,
    written,
)

NESTED = "[" * 100_000 + "]" * 100_000

WEIGHTS_FILES: dict[str, tuple[Corruption, str]] = {
    # --- the weights' file
    "truncated": (truncated(WEIGHTS, 1000), "model.safetensors"),
    "trailing bytes": (
        lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes() + bytes(7)),
        "model.safetensors",
    ),
    "truncated in its header": (lambda path: os.truncate(path / WEIGHTS, 300), "model.safetensors"),
    "truncated in its size field": (lambda path: os.truncate(path / WEIGHTS, 5), "model.safetensors"),
    "LFS pointer": (
        written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1736585680\n"),
        "model.safetensors",
    ),
    "web page": (written(WEIGHTS, "<!DOCTYPE html><html><body>404</body></html>"), "model.safetensors"),
    "empty file": (written(WEIGHTS, b""), "model.safetensors"),
    "zeros": (written(WEIGHTS, bytes(5000)), "model.safetensors"),
    "header claims 2**60 bytes": (written(WEIGHTS, struct.pack("<Q", 2**60) + b"{}" * 100), "model.safetensors"),
    "header is not JSON": (header(lambda text: text.replace(":", ";", 3)), "model.safetensors"),
    "header is nested": (header(lambda _: '{"a":' + NESTED + "}"), "model.safetensors"),
    "header without a shape": (header(lambda t: t.replace('"shape"', '"shapes"')), "model.safetensors"),
    "offsets infinite": (
        header(lambda t: t.replace('"data_offsets":[0', '"data_offsets":[1e999')),
        "model.safetensors",
    ),
    "a size with thousands of digits": (
        header(lambda t: t.replace('"shape":[', '"shape":[' + "9" * 4000, 1)),
        "model.safetensors",
    ),
    "thousands of dimensions": (
        header(lambda t: t.replace('"shape":[', '"shape":[' + "9," * 4000, 1)),
        "model.safetensors",
    ),
    "offsets overlap": (header(lambda t: t.replace('"data_offsets":[0,', '"data_offsets":[4,')), "model.safetensors"),
    "no tensors": (header(lambda _: "{}"), "model.safetensors"),
    "weights missing": (removed(WEIGHTS), "model.safetensors"),
    "only .bin": (only_bin, "model.safetensors"),
    "weights are a folder": (folder(WEIGHTS), "model.safetensors"),
    "weights are a pipe": (pipe(WEIGHTS), "model.safetensors"),
    "weights are endless zeros": (linked(WEIGHTS, "/dev/zero"), "model.safetensors"),
    "weights are sparse": (extended(WEIGHTS, 2**40), "model.safetensors"),
    "header of ten million objects": (header(lambda _: "{" + ",".join(['"":{}'] * 10**7) + "}"), "model.safetensors"),
    "tensor with a name of a megabyte": (header(lambda t: t.replace(QKV, "x" * 900_000)), "xxx"),
    "link out of the directory": (moved_out(WEIGHTS), "model.safetensors"),
    # --- its tensors
    "every fault at once": (tensors(every_mismatch), "new.pooler.dense.weight"),
    "duplicate in the header": (
        header(lambda t: t.replace("new.encoder.layer.1.mlp_ln.bias", "new.encoder.layer.0.mlp_ln.bias")),
        "new.encoder.layer.0.mlp_ln.bias",
    ),
    "duplicate through the prefix": (
        tensors(lambda arrays: arrays.update({QKV.removeprefix("new."): arrays[QKV].copy()})),
        "encoder.layer.0.attention.qkv_proj.weight",
    ),
    "int8 tensor": (tensors(lambda a: a.update({QKV: a[QKV].astype(np.int8)})), QKV),
    "float64 tensor": (tensors(lambda a: a.update({QKV: a[QKV].astype(np.float64)})), QKV),
    "layers of two dtypes": (
        tensors(lambda a: a.update({QKV: a[QKV].astype(np.float16)})),
        "layers/attention/qkv/kernel",
    ),
    "NaN": (tensors(lambda a: with_value(a[QKV], np.nan)), QKV),
    "infinity": (tensors(lambda a: with_value(a[QKV], np.inf)), QKV),
    "both infinities": (tensors(lambda a: (with_value(a[QKV][:9], np.inf), with_value(a[QKV][9:], -np.inf))), QKV),
    "NaN in float16": (
        tensors(lambda a: a.update({k: np.full_like(v, np.nan, np.float16) for k, v in a.items()})),
        "new.embeddings.word_embeddings.weight",
    ),
    "NaN in a head": (
        tensors(lambda a: with_value(a["linear.weight"], np.nan), "2_Dense_64/model.safetensors"),
        "linear.weight",
    ),
    "a head of another size": (
        tensors(lambda a: a.update({"linear.bias": np.zeros(3, np.float32)}), "2_Dense_32/model.safetensors"),
        "linear.bias",
    ),
    # --- shards
    "duplicate across shards": (sharded(duplicated_across_shards), "new.embeddings.LayerNorm.bias"),
    "missing shard": (sharded(removed("b.safetensors")), "b.safetensors"),
    "shard truncated": (sharded(truncated("b.safetensors", 100)), "b.safetensors"),
    "index leads up": (pointed_at("../outside.safetensors"), "../outside.safetensors"),
    "index is absolute": (pointed_at("/etc/passwd"), "/etc/passwd"),
    "index leads to ..": (pointed_at(".."), "index.json"),
    "index with a NUL": (pointed_at("a\0b"), r"a\x00b"),
    "index with a surrogate": (pointed_at("a\ud800b"), r"a\ud800b"),
    "index with a long name": (pointed_at("a" * 5000), "aaa"),
    "index with an empty name": (pointed_at(""), "index.json"),
    "index of 100,000 shards that are missing": (
        sharded(lambda path: write_json(path / INDEX, {"weight_map": {str(i): f"{i}.st" for i in range(10**5)}})),
        "index.json",
    ),
    "index of 1,000 shards that are missing": (
        sharded(lambda path: write_json(path / INDEX, {"weight_map": {str(i): f"{i}.st" for i in range(1000)}})),
        "and 980 more",
    ),
    "index without a map": (sharded(written(INDEX, "{}")), "index.json"),
    "index of numbers": (sharded(written(INDEX, '{"weight_map": {"a": 1}}')), "index.json"),
}
