"""Parameters of a converted checkpoint that are damaged or hostile, and what the error says of each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from damage import Damage, cut, edited, folder, gone, grown, linked, moved_out, pipe, removed, written

LEAF = "params/state/encoder.embeddings.norm.scale"
HEADER, CHUNK = f"{LEAF}/.zarray", f"{LEAF}/0"


def zarray(**changes: Any) -> Damage:
    return edited(HEADER, **changes)


def copied(path: Path) -> None:
    """A leaf that no model has."""
    (path / f"{LEAF}s").mkdir()
    (path / f"{LEAF}s/.zarray").write_bytes((path / HEADER).read_bytes())
    (path / f"{LEAF}s/0").write_bytes((path / CHUNK).read_bytes())


def reshaped(*shape: int) -> Damage:
    return zarray(shape=[*shape], chunks=[*shape])


PARAMETERS: dict[str, tuple[Damage, str]] = {
    # --- what stands in place of files and folders
    "no parameters": (lambda path: gone(path / "params"), r"has no model\.safetensors"),
    "no tree": (lambda path: gone(path / "params/state"), r"params/state is missing"),
    "a leaf is missing": (lambda path: gone(path / LEAF), r"missing: encoder/embeddings/norm/scale"),
    "a leaf is unknown": (copied, r"unknown: encoder\.embeddings\.norm\.scales"),
    "parameters lie outside": (moved_out("params"), r"leads out of"),
    "the tree lies outside": (moved_out("params/state"), r"'params/state' leads out of"),
    "a leaf lies outside": (moved_out(LEAF), r"norm\.scale/\.zarray' leads out of"),
    "a leaf's header lies outside": (moved_out(HEADER), r"norm\.scale/\.zarray' leads out of"),
    "a leaf's numbers lie outside": (moved_out(CHUNK), r"norm\.scale/0' leads out of"),
    "a leaf's numbers are endless zeros": (linked(CHUNK, "/dev/zero"), r"norm\.scale/0' leads out of"),
    "a leaf's numbers are a pipe": (pipe(CHUNK), r"norm\.scale/0: a pipe or a device, not a file"),
    "a leaf's numbers are a folder": (folder(CHUNK), r"norm\.scale/0: a folder, not a file"),
    "a leaf's numbers are missing": (removed(CHUNK), r"norm\.scale/0 is missing"),
    "a leaf's numbers are cut off": (cut(CHUNK, 1), r"norm\.scale/0 has 255 bytes, not 256"),
    "a leaf's numbers are sparse": (grown(CHUNK, 2**40), r"norm\.scale/0 has \d+ bytes, not 256"),
    "a leaf's numbers are NaN": (written(CHUNK, np.full(64, np.nan, np.float32).tobytes()), r"norm/scale holds NaN"),
    "a leaf's header is a pipe": (pipe(HEADER), r"\.zarray: a pipe or a device, not a file"),
    "a leaf's header is missing": (removed(HEADER), r"\.zarray is missing"),
    "a leaf's header is a terabyte": (grown(HEADER, 2**40), r"\.zarray is larger than"),
    "a leaf's header is no JSON": (written(HEADER, "{"), r"\.zarray is not JSON"),
    "a leaf's header is a list": (written(HEADER, "[]"), r"\.zarray must hold a JSON object"),
    "an archive of another format": (written("params/state/manifest.ocdbt", b""), r"OCDBT database are not supported"),
    # --- what a leaf's header claims
    "another shape": (
        lambda path: (reshaped(32, 2)(path), (path / CHUNK).rename(path / f"{LEAF}/0.0")),
        r"shape: encoder/embeddings/norm/scale is \[32, 2\], config\.json says \[64\]",
    ),
    "another size": (reshaped(65), r"norm\.scale/0 has 256 bytes, not 260"),
    "a shape of 2 GB": (reshaped(2**29), r"norm\.scale/0 has 256 bytes, not 2147483648"),
    "a shape beyond any number": (reshaped(10**4000), r"norm\.scale/0 has 256 bytes, not 40+\.\.\."),
    "a shape beyond any text": (
        lambda path: (reshaped(*[10**4000] * 2)(path), (path / CHUNK).rename(path / f"{LEAF}/0.0")),
        r"norm\.scale/0\.0 has 256 bytes, not a huge int",
    ),
    "a shape of nothing": (reshaped(0), r"\.zarray: shape = \[0\] must list whole numbers"),
    "no shape": (zarray(shape=...), r"\.zarray: shape = None must list"),
    "a shape of texts": (zarray(shape=["64"]), r"\.zarray: shape = \['64'\] must list"),
    "a million dimensions": (reshaped(*[1] * 10**6), r"cannot be read as a file"),
    "many chunks": (zarray(chunks=[1]), r"\.zarray: chunks = \[1\] is not supported"),
    "one chunk of 2 GB": (zarray(chunks=[2**29]), r"\.zarray: chunks = \[536870912\] is not supported"),
    "compressed": (zarray(compressor={"id": "zstd"}), r"\.zarray: compressor = \{'id': 'zstd'\} is not supported"),
    "filtered": (zarray(filters=[{"id": "delta"}]), r"\.zarray: filters = .* is not supported"),
    "in another order": (zarray(order="F"), r"\.zarray: order = 'F' is not supported"),
    "Zarr 3": (zarray(zarr_format=3), r"\.zarray: zarr_format = 3 is not supported"),
    "float64": (zarray(dtype="<f8"), r"\.zarray: dtype = '<f8' is not supported"),
    "objects": (zarray(dtype="|O"), r"\.zarray: dtype = '\|O' is not supported"),
    "a dtype of fields": (zarray(dtype=[["a", "<f4"]]), r"\.zarray: dtype = .* is not supported"),
    # --- where the parameters came from
    "provenance of another kind": (
        lambda path: (path / "provenance.json").write_text(json.dumps({"leaves": {"x": 1}})),
        r"provenance\.json is damaged: leaves",
    ),
    "provenance is a pipe": (pipe("provenance.json"), r"provenance\.json: a pipe or a device, not a file"),
}
