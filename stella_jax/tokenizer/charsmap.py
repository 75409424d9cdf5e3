"""The character map of a Precompiled normalizer: SentencePiece's table of character replacements."""

import base64
import binascii

import numpy as np

# XLM-RoBERTa's has 240 kB.
MAX_BYTES = 2**20
# Bytes of NFKC's replacement of U+FDFA, the longest of any character.
MAX_REPLACEMENT_LENGTH = 33


def charsmap_error(encoded: str) -> str | None:
    """What is wrong with a character map, or None: a reader then stays inside it, and no text grows more than by NFKC.

    Layout: the size in bytes of a trie (uint32), the trie's units (uint32, as in darts-clone), and the replacements,
    each with a NUL after it. The tokenizers library does not check bounds.
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
    if max(map(len, replacements.split(b"\0"))) > MAX_REPLACEMENT_LENGTH:
        return f"a replacement of more than {MAX_REPLACEMENT_LENGTH} bytes"
    return _trie_fault(units, replacements)


def _trie_fault(units: np.ndarray, replacements: bytes) -> str | None:
    """Checks the trie: a unit's children are at its index xor its offset xor their byte; byte 0 is a word's leaf."""
    try:
        replacements.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    offsets = (units >> 10) << ((units & 512) >> 6)
    children = np.arange(len(units), dtype=np.uint32) ^ offsets
    inner = units < 2**31  # others are leaves
    if (children[inner] >= len(units)).any():  # a block is there or not as a whole
        return "its trie leads out of itself"
    leaves = units[children[inner & ((units >> 8) & 1 == 1)]] & (2**31 - 1)
    begins = np.frombuffer(replacements, np.uint8) & 0xC0 != 0x80  # of a character
    if (leaves >= len(begins)).any() or not begins[leaves].all():
        return "its trie leads out of its replacements"
    return None
