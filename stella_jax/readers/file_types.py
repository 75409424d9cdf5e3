"""Types of input files, recognized by their names."""

from typing import NamedTuple

PLAIN = (".jsonl", ".txt", ".csv")
SUFFIXES = (*PLAIN, ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

SUPPORTED = f"{', '.join(PLAIN)} (each also {', '.join(COMPRESSIONS)}), .parquet"


class FileType(NamedTuple):
    """A suffix of `SUFFIXES`, and the compression: "gzip", "zstd" or None."""

    suffix: str
    compression: str | None


TYPES = {suffix: FileType(suffix, None) for suffix in SUFFIXES}
COMPRESSED_TYPES = {
    suffix + end: FileType(suffix, compression) for suffix in PLAIN for end, compression in COMPRESSIONS.items()
}


def file_type(name: str) -> FileType | None:
    """The type of a file of this name, whatever its case; None if it is not supported."""
    stem, dot, last = name.lower().rpartition(".")
    return TYPES.get(dot + last) or COMPRESSED_TYPES.get(f".{stem.rpartition('.')[2]}.{last}" if "." in stem else "")


def is_parquet(name: str) -> bool:
    """Whether a file of this name is read as Parquet."""
    return _has_suffix(name, ".parquet")


def is_jsonl(name: str) -> bool:
    """Whether a file of this name is read as JSON lines."""
    return _has_suffix(name, ".jsonl")


def _has_suffix(name: str, suffix: str) -> bool:
    found = file_type(name)
    return found is not None and found.suffix == suffix
