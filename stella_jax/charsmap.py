"""The character map of a Precompiled normalizer: SentencePiece's table of what each character becomes."""

import base64
import binascii

import numpy as np

# XLM-RoBERTa's has 240 kB.
MAX_BYTES = 2**20
# What NFKC makes of U+FDFA, the most of any character.
LONGEST_REPLACEMENT = 33


def charsmap_fault(encoded: str) -> str | None:
    """What is wrong with a character map, None where a reader stays within it and no character grows beyond NFKC's.

    Layout: the size in bytes of a trie (uint32), the trie's units (uint32; those of darts-clone), and what characters
    become, each with a NUL after it. The reader checks no bounds.
    """
    if len(encoded) > MAX_BYTES * 4 // 3:
        return f"longer than {MAX_BYTES} bytes"
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return "not base64"
    size = int.from_bytes(blob[:4], "little")
    if size % 1024 or not 0 < size <= len(blob) - 4:  # units come in blocks of 256
        return "cut off"
    units, replacements = np.frombuffer(blob, "<u4", size // 4, 4), blob[4 + size :]
    if not replacements.endswith(b"\0"):
        return "cut off"
    if max(map(len, replacements.split(b"\0"))) > LONGEST_REPLACEMENT:
        return f"with a replacement of more than {LONGEST_REPLACEMENT} bytes"
    return _trie_fault(units, replacements)


def _trie_fault(units: np.ndarray, replacements: bytes) -> str | None:
    """A unit's children lie at its own place, changed by its offset and their byte; the leaf of a word at byte 0."""
    try:
        replacements.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    offsets = (units >> 10) << ((units & 512) >> 6)
    children = np.arange(len(units), dtype=np.uint32) ^ offsets
    inner = units < 2**31  # others are leaves
    if (children[inner] >= len(units)).any():  # a block is whole or not there, so all its bytes are
        return "with a trie that leads out of itself"
    leaves = units[children[inner & ((units >> 8) & 1 == 1)]] & (2**31 - 1)
    begins = np.frombuffer(replacements, np.uint8) & 0xC0 != 0x80  # of a character
    if (leaves >= len(begins)).any() or not begins[leaves].all():
        return "with a trie that leads out of its replacements"
    return None
