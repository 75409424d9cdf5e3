"""Recipe of a training run: all its settings, read from TOML and checked before anything is loaded."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, first_line, quoted, short_repr
from stella_jax.storage.location import open_regular
from train.sections import (
    SPLITS,
    DataSection,
    EvaluatorSection,
    LoopSection,
    LoraSection,
    LossSection,
    NewHeadSection,
    OptimizerSection,
)
from train.sections.fields import number, section
from train.toml_text import override, toml

MAX_FILE_SIZE = 2**15  # tomllib's time grows with the square of the size: seconds for this one


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
      model: "tiny", a directory or a repo id, as in `Stella.from_pretrained`.
      output: directory for metrics, checkpoints and export.
      data: the table [data].
      loss: the table [loss].
      optimizer: the table [optimizer].
      loop: the table [loop].
      lora: the table [lora]; without it all parameters train.
      revision: branch, tag or commit of a repo.
      dim: dimension of the head to train; None is the checkpoint's default.
      new_head: the table [new_head], a new head instead of `dim`.
      evaluators: the tables [[evaluators]].
      seed: of the order of rows, dropout, a new head and adapters.
    """

    model: str
    output: str
    data: DataSection
    loss: LossSection = field(default_factory=LossSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    loop: LoopSection = field(default_factory=LoopSection)
    lora: LoraSection | None = None
    new_head: NewHeadSection | None = None
    evaluators: tuple[EvaluatorSection, ...] = ()
    revision: str | None = None
    dim: int | None = number(None, least=1)
    seed: int = number(42, least=0, most=2**32 - 1)

    def as_dict(self) -> dict[str, Any]:
        """All keys with their values, as JSON values."""
        return _as_json(dataclasses.asdict(self))

    def to_toml(self) -> str:
        """The recipe as TOML, with every key that has a value."""
        return toml(self.as_dict())

    def conflicts(self) -> Iterator[str]:
        """Conflicts between keys that are valid by themselves, a sentence each."""
        loss, loop = self.loss, self.loop
        yield from loss.conflicts()
        yield from self.data.conflicts()
        if self.new_head and self.dim is not None:
            yield "dim and new_head both choose the head; set one of them"
        if self.new_head and self.lora and not self.lora.head:
            yield "new_head is initialized at random, and [lora] does not train it; set lora.head = true"
        evaluated = self.data.sets_of("eval") or any(each.split == "eval" for each in self.evaluators)
        if not evaluated and (loop.early_stop or loop.best or loop.export == "best"):
            key = "early_stop" if loop.early_stop else "best" if loop.best else "export = 'best'"
            yield f"loop.{key} needs evaluations; name a file in data.eval or an evaluator"
        names = [each.name for each in self.evaluators]
        taken = {each.title for split in SPLITS for each in self.data.sets_of(split)}
        for name in names:
            if names.count(name) > 1 or "/" in name or name in taken:
                yield f"evaluators: the name {short_repr(name)} is taken or contains '/'; choose another name"
        if loop.gradient_accumulation_steps > loop.batch_size:
            yield (
                f"loop.gradient_accumulation_steps = {loop.gradient_accumulation_steps} is more than loop.batch_size = "
                f"{loop.batch_size}; lower it"
            )
        if loop.gradient_accumulation_steps > 1 and loss.mini_batch:
            yield "loss.mini_batch and loop.gradient_accumulation_steps both split the batch; use one of them"


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe from a TOML file.

    Args:
      path: the file.
      overrides: "section.key=value" each, replaces the file's value; the value is TOML or a bare string.

    Raises:
      StellaError: the file cannot be read, a key is unknown or missing, a value has a wrong type or is out of bounds,
        or keys conflict.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE_SIZE + 1)
        if len(content) > MAX_FILE_SIZE:
            raise StellaError(f"{quoted(path)}: larger than {MAX_FILE_SIZE} bytes; pass a recipe, a .toml file.")
        tree = tomllib.loads(content.decode())
    except StellaError:
        raise
    except RecursionError as error:
        raise StellaError(f"{quoted(path)}: a value is nested too deeply; write it in fewer levels.") from error
    except OSError as error:
        raise StellaError(f"{quoted(path)}: cannot be read: {error.strerror}; pass a recipe, a .toml file.") from error
    except ValueError as error:  # wrong TOML, wrong UTF-8, and a NUL in the path
        raise StellaError(f"{quoted(path)}: not valid TOML ({first_line(error)[:200]}); fix its syntax.") from error
    for text in overrides:
        override(tree, text)
    return recipe_of(tree, f"{quoted(path)} with --set" if overrides else quoted(path))


def recipe_of(tree: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Makes a recipe from a parsed file; `where` names it in errors, which are those of `read_recipe`."""
    try:
        recipe: Recipe = section(Recipe, tree, "", where)
        json.dumps(recipe.as_dict())
    except RecursionError as error:
        raise StellaError(f"{where}: a value is nested too deeply; write it in fewer levels.") from error
    for conflict in recipe.conflicts():
        raise StellaError(f"{where}: {conflict}.")
    return recipe


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
