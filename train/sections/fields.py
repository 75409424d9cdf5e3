"""Typed keys of a TOML file: declared as dataclass fields, and checked against them when read."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import field
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stella_jax.errors import StellaError, quoted, short_repr

BOUNDS = (("least", -math.inf), ("above", -math.inf), ("most", math.inf))
MAX_JSON_INT = 2**63 - 1
MAX_NUMBER = {int: 2**31 - 1, float: 3.4e38}  # of float32


def one_of(*values: str) -> Any:
    """A field with these choices; the first is the default."""
    return field(default=values[0], metadata={"choices": values})


def optional_one_of(*values: str) -> Any:
    """A field with these choices; None is the default."""
    return field(default=None, metadata={"choices": values})


def number(default: Any, **bounds: float) -> Any:
    """A numeric field.

    Args:
      bounds: `least` (>=), `above` (>) and `most` (<=, by default `MAX_NUMBER`).
    """
    return field(default=default, metadata=bounds)


def steps_or(word: str) -> Any:
    """A field for an interval: this word, the default, or a number of steps."""
    return field(default=word, metadata={"choices": (word,), "least": 1})


def section(kind: type, tree: dict[str, Any], name: str, where: str) -> Any:
    """Makes a dataclass from a parsed table.

    Args:
      kind: the dataclass.
      tree: the table.
      name: prefix of its keys in errors, such as "data." or "".
      where: the file, for errors.

    Raises:
      StellaError: a key is unknown or missing, or its value has a wrong type or is out of bounds.
    """
    fields, types = {f.name: f for f in dataclasses.fields(kind)}, get_type_hints(kind)
    unknown = [key for key in tree if key not in fields]
    if unknown:
        raise StellaError(f"{where}: unknown key {name}{quoted(unknown[0])}; known keys: {', '.join(fields)}.")
    needed = [key for key, f in fields.items() if _is_required(f) and key not in tree]
    if needed:
        raise StellaError(f"{where}: {name}{needed[0]} is missing; add it.")
    values = {}
    for key, value in tree.items():
        kinds = (types[key], *get_args(types[key]))
        nested: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested and get_origin(types[key]) is tuple:
            tables = value if isinstance(value, list) else [value]
            named = [(f"{name}{key}[{i}]", table) for i, table in enumerate(tables)]
            values[key] = tuple(section(nested, _table(table, at, where), f"{at}.", where) for at, table in named)
        elif nested:
            values[key] = section(nested, _table(value, f"{name}{key}", where), f"{name}{key}.", where)
        else:
            values[key] = _value(value, types[key], fields[key].metadata, f"{where}: {name}{key}")
    return kind(**values)


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _table(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StellaError(f"{where}: {name} = {short_repr(value)} must be a section, [{name}].")
    return value


def _value(value: Any, kind: Any, rules: Any, name: str) -> Any:
    """The value checked and converted to its field's type; `name` is for errors."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return _json_value(value, name)
    if origin is UnionType:
        kinds = [each for each in inner if each is not NoneType]
        kind = next((each for each in kinds if _is_a(value, get_origin(each) or each)), kinds[0])
        return _value(value, kind, rules, name)
    if not _is_a(value, origin or kind):
        raise StellaError(f"{name} = {short_repr(value)} must be {_words(origin or kind, rules)}.")
    if origin is tuple:
        return tuple(_value(item, inner[0], rules, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        known = rules.get("keys")
        for key in value:
            if known and key not in known:
                raise StellaError(
                    f"{name} = {short_repr(value)}: unknown key {short_repr(key)}; known keys: {', '.join(known)}."
                )
        return {key: _value(item, inner[1], rules, f"{name}.{key}") for key, item in value.items()}
    return _word(value, rules, name) if kind is str else value if kind is bool else _bounded(value, kind, rules, name)


def _json_value(value: Any, name: str) -> Any:
    """A value that JSON can represent, as recipes are stored with checkpoints."""
    if isinstance(value, list):
        return [_json_value(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _json_value(item, f"{name}.{key}") for key, item in value.items()}
    if not isinstance(value, str | int | float) or (not isinstance(value, str) and not abs(value) < math.inf):
        raise StellaError(
            f"{name} = {short_repr(value)} must be a string, a finite number, true, false, or a list or table of these."
        )
    if isinstance(value, int) and abs(value) > MAX_JSON_INT:
        raise StellaError(f"{name} = {short_repr(value)} must be at most {MAX_JSON_INT}.")
    return value


def _is_a(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, list if kind is tuple else kind)


def _word(value: str, rules: Any, name: str) -> str:
    choices = rules.get("choices")
    if choices and value not in choices:
        numbers = " or a number of steps" if "least" in rules else ""
        raise StellaError(f"{name} = {short_repr(value)} must be {_either(choices)}{numbers}.")
    if not value:
        raise StellaError(f"{name} is empty; give it a value or leave the key out.")
    if "\0" in value:
        raise StellaError(f"{name} = {short_repr(value)} contains a NUL character; remove it.")
    return value


def _bounded(value: float, kind: type, rules: Any, name: str) -> Any:
    least, above, most = (rules.get(key, bound) for key, bound in BOUNDS)
    if not (least <= value <= most and value > above and abs(value) < math.inf):
        raise StellaError(f"{name} = {short_repr(value)} must be {_words(kind, rules)}.")
    if "most" not in rules and abs(value) > MAX_NUMBER[kind]:
        raise StellaError(f"{name} = {short_repr(value)} must be at most {MAX_NUMBER[kind]}.")
    return kind(value)


def _words(kind: Any, rules: Any) -> str:
    """What a key accepts, in words."""
    if kind is str:
        return _either(rules["choices"]) if "choices" in rules else "a text in quotes"
    if kind not in (int, float):
        return {bool: "true or false", tuple: "a list, [...]", dict: "a table, {...}"}[kind]
    least, above, most = (rules.get(key, bound) for key, bound in BOUNDS)
    words = ["a whole number" if kind is int else "a number"]
    words += [f"of at least {least:g}"] if least > -math.inf else []
    words += [f"above {above:g}"] if above > -math.inf else []
    words += [f"of at most {most:.10g}"] if most < math.inf else []
    return f"{words[0]} {' and '.join(words[1:])}".rstrip()


def _either(choices: Sequence[str]) -> str:
    return " or ".join(repr(choice) for choice in choices)
