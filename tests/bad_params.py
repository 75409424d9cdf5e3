"""Damaged or hostile parameters of a converted checkpoint, and what the error names for each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from corruptions import (
    Corruption,
    edited,
    extended,
    folder,
    linked,
    moved_out,
    pipe,
    remove,
    removed,
    truncated,
    written,
)

LEAF = "params/state/encoder.embeddings.norm.scale"
HEADER, CHUNK = f"{LEAF}/.zarray", f"{LEAF}/0"


def zarray(**changes: Any) -> Corruption:
    return edited(HEADER, **changes)


def copied(path: Path) -> None:
    """A leaf that no model has."""
    (path / f"{LEAF}s").mkdir()
    (path / f"{LEAF}s/.zarray").write_bytes((path / HEADER).read_bytes())
    (path / f"{LEAF}s/0").write_bytes((path / CHUNK).read_bytes())


def reshaped(*shape: int) -> Corruption:
    return zarray(shape=[*shape], chunks=[*shape])


PARAMETERS: dict[str, tuple[Corruption, str]] = {
    # --- files and folders
    "no parameters": (lambda path: remove(path / "params"), "model.safetensors"),
    "no tree": (lambda path: remove(path / "params/state"), "params/state"),
    "a leaf is missing": (lambda path: remove(path / LEAF), "encoder/embeddings/norm/scale"),
    "a leaf is unknown": (copied, "encoder.embeddings.norm.scales"),
    "parameters lie outside": (moved_out("params"), "params"),
    "the tree lies outside": (moved_out("params/state"), "params/state"),
    "a leaf lies outside": (moved_out(LEAF), "norm.scale/.zarray"),
    "a leaf's header lies outside": (moved_out(HEADER), "norm.scale/.zarray"),
    "a leaf's numbers lie outside": (moved_out(CHUNK), "norm.scale/0"),
    "a leaf's numbers are endless zeros": (linked(CHUNK, "/dev/zero"), "norm.scale/0"),
    "a leaf's numbers are a pipe": (pipe(CHUNK), "norm.scale/0"),
    "a leaf's numbers are a folder": (folder(CHUNK), "norm.scale/0"),
    "a leaf's numbers are missing": (removed(CHUNK), "norm.scale/0"),
    "a leaf's numbers are truncated": (truncated(CHUNK, 1), "norm.scale/0"),
    "a leaf's numbers are sparse": (extended(CHUNK, 2**40), "norm.scale/0"),
    "a leaf's numbers are NaN": (written(CHUNK, np.full(64, np.nan, np.float32).tobytes()), "norm/scale"),
    "a leaf's header is a pipe": (pipe(HEADER), ".zarray"),
    "a leaf's header is missing": (removed(HEADER), ".zarray"),
    "a leaf's header is a terabyte": (extended(HEADER, 2**40), ".zarray"),
    "a leaf's header is not JSON": (written(HEADER, "{"), ".zarray"),
    "a leaf's header is a list": (written(HEADER, "[]"), ".zarray"),
    "an archive of another format": (written("params/state/manifest.ocdbt", b""), "OCDBT"),
    # --- a leaf's header
    "another shape": (
        lambda path: (reshaped(32, 2)(path), (path / CHUNK).rename(path / f"{LEAF}/0.0")),
        "encoder/embeddings/norm/scale",
    ),
    "another size": (reshaped(65), "norm.scale/0"),
    "a shape of 2 GB": (reshaped(2**29), "norm.scale/0"),
    "a shape beyond any number": (reshaped(10**4000), "norm.scale/0"),
    "a shape beyond any text": (
        lambda path: (reshaped(*[10**4000] * 2)(path), (path / CHUNK).rename(path / f"{LEAF}/0.0")),
        "norm.scale/0.0",
    ),
    "a shape of nothing": (reshaped(0), "shape"),
    "no shape": (zarray(shape=...), "shape"),
    "a shape of texts": (zarray(shape=["64"]), "shape"),
    "a million dimensions": (reshaped(*[1] * 10**6), "0.0.0"),
    "many chunks": (zarray(chunks=[1]), "chunks"),
    "one chunk of 2 GB": (zarray(chunks=[2**29]), "chunks"),
    "compressed": (zarray(compressor={"id": "zstd"}), "compressor"),
    "filtered": (zarray(filters=[{"id": "delta"}]), "filters"),
    "in another order": (zarray(order="F"), "order"),
    "Zarr 3": (zarray(zarr_format=3), "zarr_format"),
    "float64": (zarray(dtype="<f8"), "dtype"),
    "objects": (zarray(dtype="|O"), "dtype"),
    "a dtype of fields": (zarray(dtype=[["a", "<f4"]]), "dtype"),
    # --- provenance.json
    "invalid provenance": (
        lambda path: (path / "provenance.json").write_text(json.dumps({"leaves": {"x": 1}})),
        "leaves",
    ),
    "provenance is a pipe": (pipe("provenance.json"), "provenance.json"),
}
