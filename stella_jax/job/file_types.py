"""Types of input files, told by their names."""

from typing import NamedTuple

PLAIN = (".jsonl", ".txt", ".csv")
SUFFIXES = (*PLAIN, ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

SUPPORTED = f"{', '.join(PLAIN)} (each also {', '.join(COMPRESSIONS)}), .parquet"


class FileType(NamedTuple):
    """A suffix of `SUFFIXES`, and what the file is compressed with: "gzip", "zstd" or None."""

    suffix: str
    compression: str | None


def file_type(name: str) -> FileType | None:
    """The type of a file of this name, in upper or lower case; None if it is not supported."""
    name = name.lower()
    compression = COMPRESSIONS.get(_suffix(name))
    suffix = _suffix(name[: name.rfind(".")] if compression else name)
    return FileType(suffix, compression) if suffix in (PLAIN if compression else SUFFIXES) else None


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""
