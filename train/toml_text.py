"""TOML text: a parsed file written back, and values of the command line parsed into it."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from stella_jax.errors import StellaError, short_repr
from stella_jax.tokenizer.tokenizer import check_text


def toml(tree: dict[str, Any]) -> str:
    """A parsed file as TOML, its top-level lists as arrays of tables; keys whose value is None are left out."""
    top = {key: value for key, value in tree.items() if not isinstance(value, dict | list)}
    tables = [(f"[{key}]", value) for key, value in tree.items() if isinstance(value, dict)]
    tables += [(f"[[{key}]]", table) for key, value in tree.items() if isinstance(value, list) for table in value]
    return "\n".join("\n".join(_toml_lines(*each)) for each in (("", top), *tables)) + "\n"


def _toml_lines(title: str, keys: dict[str, Any]) -> Iterator[str]:
    yield from [title] if title else []
    yield from (f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None)


def _toml(value: Any) -> str:
    """A value in TOML, which is like JSON but for tables."""
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item is not None}
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in given.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value).replace("\x7f", "\\u007f")


def override(tree: dict[str, Any], text: str) -> None:
    """Sets a value of a parsed file.

    Args:
      tree: the parsed file, which is changed.
      text: "section.key=value"; a key of a table may follow, as in "data.prompts.anchor=value".

    Raises:
      StellaError: the text is not of this form, or not UTF-8.
    """
    check_text(text, "--set")
    path, equals, raw = text.partition("=")
    names = [name.strip() for name in path.strip().split(".", 2)]
    if not equals or not all(names):
        raise StellaError(f"--set {short_repr(text)}: not of the form section.key=value.")
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise StellaError(f"--set {short_repr(text)}: {name} is not a section.")
    tree[names[-1]] = _parsed(raw.strip())


def _parsed(raw: str) -> Any:
    """The parsed TOML value; anything else is a string, so that words need no quotes."""
    try:
        value = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw
    return value["value"] if set(value) == {"value"} else raw
