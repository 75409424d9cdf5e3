"""Marks inputs that turned out to be damaged after some of their rows were committed, such as a truncated .gz.

Only such an input may change between runs; its committed rows are then read again and compared.
"""

from stella_jax.storage.store import Store

DAMAGED_FOLDER = "_job/damaged"


def mark(store: Store, input: int, reason: str) -> None:
    store.write_json(_name(input), {"input": input, "reason": reason})


def is_marked(store: Store, input: int) -> bool:
    return store.size(_name(input)) is not None


def _name(input: int) -> str:
    return f"{DAMAGED_FOLDER}/input-{input}.json"
