"""Marks inputs that turned out to be damaged after some of their rows were committed, such as a truncated .gz.

Only such an input may change between runs; its committed rows are then read again and compared.
"""

from stella_jax.storage.store import Store

DAMAGED_FOLDER = "_job/damaged"


def mark(store: Store, input: int, reason: str) -> None:
    """Marks an input, by its index in the job; `reason` is for readers of the file."""
    store.write_json(_name(input), {"input": input, "reason": reason})


def is_marked(store: Store, input: int) -> bool:
    """Whether an input is marked."""
    return store.size(_name(input)) is not None


def _name(input: int) -> str:
    return f"{DAMAGED_FOLDER}/input-{input}.json"
