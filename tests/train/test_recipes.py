"""The recipes that come with the repository."""

from dataclasses import replace
from pathlib import Path

import pytest

from train.data_reader import read_dataset
from train.loss_lookup import loss_spec
from train.plans import BatchPlan
from train.recipe import read_recipe
from train.sections import SPLITS
from train.sets import needs_of

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted([*(ROOT / "train/recipes").glob("*.toml"), *(ROOT / "tools/tiny").glob("*.toml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_and_its_rows_are_valid(path):
    recipe = read_recipe(path)
    needs = needs_of(recipe.loss.name, loss_spec(recipe.loss))
    for each in (each for split in SPLITS for each in recipe.data.sets_of(split)):
        if str(each.path).startswith("examples/"):
            wanted = needs if each.split == "train" else replace(needs, columns=())
            assert len(read_dataset(ROOT / str(each.path), wanted)) >= 11


def test_wordnet_is_ten_thousand_triplets_and_no_positive_of_another_split():
    data = read_recipe(ROOT / "train/recipes/wordnet.toml").data
    splits = [read_dataset(ROOT / str(path)) for path in (data.train, data.eval, data.test)]
    assert [len(rows) for rows in splits] == [10_000, 1000, 1000]
    glosses = [set(rows.texts["positive"]) for rows in splits]
    assert len(glosses[0] & (glosses[1] | glosses[2])) <= 6
    assert BatchPlan([splits[0]], 64, "no_duplicates", 42, 3).steps == 3 * 157


def test_the_splits_of_code_search_share_no_text():
    data = read_recipe(ROOT / "train/recipes/code_search.toml").data
    splits = [read_dataset(ROOT / str(path)) for path in (data.train, data.eval, data.test)]
    assert [len(rows) for rows in splits] == [3311, 524, 516]
    texts = [{text for column in rows.texts.values() for text in column} for rows in splits]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_porsche_is_as_its_model_card_says():
    recipe = read_recipe(ROOT / "train/recipes/porsche.toml")
    assert (recipe.loss.name, recipe.loss.distance, recipe.loss.margin) == ("triplet", "euclidean", 5.0)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.schedule, recipe.optimizer.warmup_ratio) == (
        2e-5,
        "cosine",
        0.1,
    )
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.optimizer.max_grad_norm) == (3, 16, 1.0)
    assert recipe.data.batch_sampler == "no_duplicates"
