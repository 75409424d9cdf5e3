"""Describes where two JSON values differ."""

import re
from collections.abc import Iterator
from typing import Any

HASH = re.compile(r"[0-9a-f]{64}")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Describes where two JSON values differ: "dim was 64, is now 32"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{name}[{i}]")
    elif before != now:
        yield f"{name} was {_short(before)}, is now {_short(now)}"


def _short(value: Any) -> str:
    """A value in an error; of a hash, the first digits."""
    if isinstance(value, str) and HASH.fullmatch(value):
        return value[:12]
    return "not set" if value is None else repr(value)
