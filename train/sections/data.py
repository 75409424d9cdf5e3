"""The table [data] and its [[data.sets]]."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stella_jax.errors import short_repr
from train.sections.fields import number, one_of

SPLITS = ("train", "eval", "test")
COLUMNS = ("anchor", "positive", "negative")

# Columns that a set may rename, besides those of `data.columns`.
RENAMED = re.compile("anchor|positive|negative(_([2-9]|[1-9][0-9]+))?|score|label|teacher|id")

Paths = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetSection:
    """One of several sets of rows, `[[data.sets]]`.

    Attributes:
      path: a file or URL, or a list of them; a pattern or directory stands for its files.
      split: train, eval or test.
      name: name in the card and prefix of its scores; None is the first file's name up to its first dot.
      weight: with proportional batches, passes through its rows per epoch; with round_robin, its batches per turn. 0
        leaves the set out.
      columns: column -> its name in the files.
      max_rows: use only so many rows from the start.
      teachers: as in `DataSection`, for this set only.
    """

    path: Paths
    split: str = one_of("train", "eval", "test")
    name: str | None = None
    weight: float = number(1.0, least=0)
    columns: dict[str, str] = field(default_factory=dict)
    max_rows: int | None = number(None, least=1)
    teachers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name, or the default."""
        first = self.path if isinstance(self.path, str) else self.path[0]
        return self.name or first.rstrip("/").rpartition("/")[2].partition(".")[0] or first


@dataclass(frozen=True, slots=True)
class DataSection:
    """The rows' files (JSONL, CSV, Parquet) and how they form batches.

    Attributes:
      train: files of the rows to train on, if they are one set.
      eval: files of the rows to evaluate during training, if they are one set.
      test: files of the rows to evaluate before and after training, if they are one set.
      sets: sets of the splits that have none of these keys.
      batches: order of the batches of several sets (each batch has rows of one): proportional, all in random order; or
        round_robin, one of each set in turn until a set has no more.
      batch_sampler: no_duplicates (no text twice in a batch), shuffle, or sequential (the order of the file).
      drop_last: leave out batches that are not full.
      skip_faulty: leave out faulty rows, such as those whose positive equals the anchor, instead of stopping.
      columns: further columns for the loss, of finite numbers or lists of them.
      teachers: outputs of `embed`. Their vectors are joined to the rows by the column `id`, normalized, concatenated
        and normalized again, as the column `teacher`.
      prompts: anchor, positive or negative -> its prompt: the name of one of the checkpoint's prompts, or a text that
        contains a space. The one of `negative` is for all negatives.
      max_length: tokens at which texts are truncated; None is the checkpoint's limit.
    """

    train: Paths | None = None
    eval: Paths | None = None
    test: Paths | None = None
    sets: tuple[SetSection, ...] = ()
    batches: str = one_of("proportional", "round_robin")
    batch_sampler: str = one_of("no_duplicates", "shuffle", "sequential")
    drop_last: bool = False
    skip_faulty: bool = False
    columns: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict, metadata={"keys": COLUMNS})
    max_length: int | None = number(None, least=1)

    def sets_of(self, split: str) -> tuple[SetSection, ...]:
        """The sets of a split, from its own key or from `sets`."""
        path: Paths | None = getattr(self, split)
        return (SetSection(path, split),) if path else tuple(each for each in self.sets if each.split == split)

    def conflicts(self) -> Iterator[str]:
        """Conflicts between its keys, a sentence each."""
        for i, each in enumerate(self.sets):
            if not each.path:
                yield f"data.sets[{i}].path is empty; name a file"
        if not self.sets_of("train"):
            yield "data.train is missing; name a file, or several as [[data.sets]]"
        for split in SPLITS:
            yield from self._conflicts_of_split(split)
        if not sum(each.weight for each in self.sets_of("train")):
            yield "data.sets: all weights of the train split are 0; give a set a weight above 0"
        for i, each in enumerate(self.sets):
            unknown = [name for name in each.columns if not RENAMED.fullmatch(name) and name not in self.columns]
            if unknown:
                yield (
                    f"data.sets[{i}].columns: unknown key {short_repr(unknown[0])}; known keys: anchor, positive, "
                    "negative, negative_2 and so on, score, label, teacher, id and those of data.columns"
                )
        for name in sorted({*self.columns}.intersection((*COLUMNS, "weights", "guide"))):
            what = "a column of texts" if name in COLUMNS else "a reserved name"
            yield f"data.columns: {name!r} is {what}; remove it"

    def _conflicts_of_split(self, split: str) -> Iterator[str]:
        titles = [each.title for each in self.sets_of(split)]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if getattr(self, split) and any(each.split == split for each in self.sets):
            yield f"data.{split} and data.sets both have rows of the split {split}; use one of them"
        if twice is not None:
            yield f"data.sets: two sets of the split {split} are called {twice!r}; give each a name"
