"""Weights that are damaged, incomplete, hostile or of another model, and what the error says of each."""

import os
import struct

import numpy as np
from damage import (
    INDEX,
    QKV,
    WEIGHTS,
    Damage,
    cut,
    duplicated_across_shards,
    every_fault_at_once,
    folder,
    grown,
    header,
    linked,
    moved_out,
    only_bin,
    pipe,
    pointed_at,
    removed,
    sharded,
    tensors,
    with_value,
    write_json,
    written,
)

NESTED = "[" * 100_000 + "]" * 100_000
OTHER_HEAD = "2_Dense_32/model.safetensors"

WEIGHTS_FILES: dict[str, tuple[Damage, str]] = {
    # --- the weights' file
    "truncated": (cut(WEIGHTS, 1000), r"model\.safetensors is truncated: its header promises \d+ bytes, it has \d+"),
    "trailing bytes": (
        lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes() + bytes(7)),
        r"model\.safetensors has 7 bytes after its last tensor",
    ),
    "cut in its header": (lambda path: os.truncate(path / WEIGHTS, 300), r"model\.safetensors .* header is damaged"),
    "cut in its size": (lambda path: os.truncate(path / WEIGHTS, 5), r"model\.safetensors is not a safetensors file"),
    "LFS pointer": (
        written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1736585680\n"),
        r"model\.safetensors .* Git LFS pointer",
    ),
    "web page": (written(WEIGHTS, "<!DOCTYPE html><html><body>404</body></html>"), r"model\.safetensors .* web page"),
    "empty file": (written(WEIGHTS, b""), r"model\.safetensors .* is empty"),
    "zeros": (written(WEIGHTS, bytes(5000)), r"model\.safetensors is not a safetensors file"),
    "header claims 2**60 bytes": (
        written(WEIGHTS, struct.pack("<Q", 2**60) + b"{}" * 100),
        r"model\.safetensors is not a safetensors file",
    ),
    "header is no JSON": (header(lambda text: text.replace(":", ";", 3)), r"model\.safetensors .* header is damaged"),
    "header is nested": (header(lambda _: '{"a":' + NESTED + "}"), r"model\.safetensors .* header is damaged"),
    "header without a shape": (header(lambda t: t.replace('"shape"', '"shapes"')), r"header is damaged"),
    "offsets infinite": (
        header(lambda t: t.replace('"data_offsets":[0', '"data_offsets":[1e999')),
        "header is damaged",
    ),
    "a size of thousands of digits": (header(lambda t: t.replace('"shape":[', '"shape":[' + "9" * 4000, 1)), "header"),
    "thousands of dimensions": (header(lambda t: t.replace('"shape":[', '"shape":[' + "9," * 4000, 1)), "header"),
    "offsets overlap": (
        header(lambda t: t.replace('"data_offsets":[0,', '"data_offsets":[4,')),
        r"not a valid safetensors",
    ),
    "no tensors": (header(lambda _: "{}"), r"missing: new|missing: embeddings|not a valid safetensors"),
    "weights missing": (removed(WEIGHTS), r"has no model\.safetensors"),
    "only .bin": (only_bin, r"only as \.bin pickles"),
    "weights are a folder": (folder(WEIGHTS), r"model\.safetensors: a folder, not a file"),
    "weights are a pipe": (pipe(WEIGHTS), r"model\.safetensors: a pipe or a device, not a file"),
    "weights are endless zeros": (linked(WEIGHTS, "/dev/zero"), r"'model\.safetensors' leads out of"),
    "weights are sparse": (grown(WEIGHTS, 2**40), r"model\.safetensors has \d+ bytes after its last tensor"),
    "header of ten million objects": (
        header(lambda _: "{" + ",".join(['"":{}'] * 10**7) + "}"),
        r"model\.safetensors is not a safetensors file",
    ),
    "tensor with a name of a megabyte": (
        header(lambda t: t.replace(QKV, "x" * 900_000)),
        r"unknown: x+",
    ),
    "link out of the directory": (moved_out(WEIGHTS), r"'model\.safetensors' leads out of"),
    # --- its tensors
    "every fault at once": (
        tensors(every_fault_at_once),
        r"(?s)dtype: new\.encoder\.layer\.1\.mlp_ln\.weight is I8.*"
        r"missing: new\.embeddings\.LayerNorm\.bias \[64\].*"
        r"shape: new\.encoder\.layer\.0\.attention\.qkv_proj\.weight is \[191, 64\], config\.json says \[192, 64\].*"
        r"unknown: new\.pooler\.dense\.weight",
    ),
    "duplicate in the header": (
        header(lambda t: t.replace("new.encoder.layer.1.mlp_ln.bias", "new.encoder.layer.0.mlp_ln.bias")),
        r"(?s)duplicate: new\.encoder\.layer\.0\.mlp_ln\.bias.*missing: new\.encoder\.layer\.1\.mlp_ln\.bias",
    ),
    "duplicate through the prefix": (
        tensors(lambda arrays: arrays.update({QKV.removeprefix("new."): arrays[QKV].copy()})),
        r"encoder\.layer\.0\.attention\.qkv_proj\.weight",
    ),
    "int8 tensor": (tensors(lambda a: a.update({QKV: a[QKV].astype(np.int8)})), rf"dtype: {QKV} is I8"),
    "float64 tensor": (tensors(lambda a: a.update({QKV: a[QKV].astype(np.float64)})), rf"dtype: {QKV} is F64"),
    "layers of two dtypes": (
        tensors(lambda a: a.update({QKV: a[QKV].astype(np.float16)})),
        r"layers/attention/qkv/kernel are stored as F16 and F32",
    ),
    "NaN": (tensors(lambda a: with_value(a[QKV], np.nan)), rf"{QKV} holds NaN or infinity"),
    "infinity": (tensors(lambda a: with_value(a[QKV], np.inf)), rf"{QKV} holds NaN or infinity"),
    "both infinities": (
        tensors(lambda a: (with_value(a[QKV][:9], np.inf), with_value(a[QKV][9:], -np.inf))),
        rf"{QKV} holds NaN or infinity",
    ),
    "NaN in float16": (
        tensors(lambda a: a.update({k: np.full_like(v, np.nan, np.float16) for k, v in a.items()})),
        r"holds NaN or infinity",
    ),
    "NaN in a head": (
        tensors(lambda a: with_value(a["linear.weight"], np.nan), "2_Dense_64/model.safetensors"),
        r"linear\.weight holds NaN",
    ),
    "a head of another size": (
        tensors(lambda a: a.update({"linear.bias": np.zeros(3, np.float32)}), "2_Dense_32/model.safetensors"),
        r"(?s)2_Dense_32.*shape: linear\.bias is \[3\].*\[32\]",
    ),
    # --- shards
    "duplicate across shards": (sharded(duplicated_across_shards), r"duplicate: new\.embeddings\.LayerNorm\.bias"),
    "missing shard": (sharded(removed("b.safetensors")), r"names shards that are missing: b\.safetensors"),
    "shard truncated": (sharded(cut("b.safetensors", 100)), r"b\.safetensors is truncated"),
    "index leads up": (pointed_at("../outside.safetensors"), r"index\.json points at '\.\./outside\.safetensors'"),
    "index is absolute": (pointed_at("{path}/a.safetensors"), r"index\.json points at '/.*a\.safetensors'"),
    "index leads to ..": (pointed_at(".."), r"index\.json (points at|names shards)"),
    "index with a NUL": (pointed_at("a\0b"), r"'a\\x00b' cannot be read as a file"),
    "index with a surrogate": (pointed_at("a\ud800b"), r"'a\\ud800b' cannot be read as a file"),
    "index with a long name": (pointed_at("a" * 5000), r"cannot be read as a file \(File name too long\)"),
    "index with an empty name": (pointed_at(""), r"index\.json"),
    "index of 100,000 shards that are missing": (
        sharded(lambda path: write_json(path / INDEX, {"weight_map": {str(i): f"{i}.st" for i in range(10**5)}})),
        r"index\.json names 100000 shards, and 1000 are allowed",
    ),
    "index of 1,000 shards that are missing": (
        sharded(lambda path: write_json(path / INDEX, {"weight_map": {str(i): f"{i}.st" for i in range(1000)}})),
        r"names shards that are missing: .* and 980 more",
    ),
    "index without a map": (sharded(written(INDEX, "{}")), r"index\.json has no weight_map"),
    "index of numbers": (sharded(written(INDEX, '{"weight_map": {"a": 1}}')), r"index\.json has no weight_map"),
}
