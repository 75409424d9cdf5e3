"""The data sets of a recipe, by split."""

from collections.abc import Sequence
from dataclasses import replace

from stella_jax.errors import StellaError
from train.data import Dataset, Needs
from train.data_reader import read_dataset
from train.losses import LossSpec
from train.sections import SPLITS, DataSection, SetSection
from train.teachers import COLUMN as TEACHER
from train.teachers import check_dimensions, with_teachers


def needs_of(name: str, spec: LossSpec, columns: Sequence[str] = ()) -> Needs:
    """The columns to read for a loss: its own and the recipe's `data.columns`."""
    return Needs(spec.texts, tuple(dict.fromkeys((*spec.columns, *columns))), loss=name)


def read_sets(data: DataSection, needs: Needs) -> dict[str, tuple[Dataset, ...]]:
    """Reads the sets of each split that has any.

    Args:
      data: the recipe's section.
      needs: the columns that the loss reads. A set of eval or test may lack some; it then has no loss.

    Raises:
      StellaError: see `read_dataset` and `with_teachers`; or teachers differ in dimension, or a set of eval or test has
        nothing to score.
    """
    found = {split: tuple(_read(each, data, needs) for each in data.sets_of(split)) for split in SPLITS}
    found = {split: sets for split, sets in found.items() if sets}
    check_dimensions([each for sets in found.values() for each in sets])
    for split in SPLITS[1:]:
        for each in found.get(split, ()):
            if len(each.texts) == 1 and not needs.are_met_by(each):
                raise StellaError(
                    f"{each.source}: nothing to score, as rows have neither a positive nor the columns of loss "
                    f"{needs.loss!r}; add them or leave the set out of data.{split}."
                )
    return found


def _read(section: SetSection, data: DataSection, needs: Needs) -> Dataset:
    teachers = section.teachers or data.teachers
    if teachers:
        needs = replace(needs, columns=tuple(name for name in needs.columns if name != TEACHER), ids=True)
    wanted = needs if section.split == "train" else replace(needs, texts=(1, None), columns=(), optional=needs.columns)
    paths = section.path if isinstance(section.path, str) else list(section.path)
    dataset = read_dataset(
        paths,
        wanted,
        renamed=section.columns,
        max_rows=section.max_rows,
        skip_faulty=data.skip_faulty,
        name=section.title,
    )
    if teachers and (dataset.ids is not None or section.split == "train"):
        dataset = with_teachers(dataset, teachers)
    return dataset
