"""Recipes: what a file may say, and what is refused by the name of its key."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from stella_jax import StellaError
from train.recipe import Recipe, read_recipe, recipe_of, to_toml

LEAST = """
model = "tiny"
output = "runs/least"
[data]
train = "train.jsonl"
"""

FULL = """
model = "tiny"
dim = 64
output = "runs/porsche"
seed = 42
[data]
train = "train.jsonl"
eval = "eval.jsonl"
test = "test.jsonl"
batch_sampler = "no_duplicates"
drop_last = false
prompts = { anchor = "s2p_query" }
[loss]
name = "triplet"
distance = "euclidean"
margin = 5
matryoshka_dims = [64, 32]
[optimizer]
learning_rate = 2e-5
schedule = "cosine"
warmup_ratio = 0.1
weight_decay = 0.0
max_grad_norm = 1.0
freeze = ["encoder/embeddings/*"]
learning_rates = { "head/*" = 1e-3 }
[loop]
epochs = 3
batch_size = 16
gradient_accumulation_steps = 2
dtype = "float32"
dropout = true
eval_every = 10
"""


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, *overrides: str) -> Recipe:
        (tmp_path / "recipe.toml").write_text(text)
        return read_recipe(tmp_path / "recipe.toml", overrides)

    return read


def test_what_is_left_out_has_its_default(read):
    recipe = read(LEAST)
    assert (recipe.seed, recipe.dim, recipe.data.eval) == (42, None, None)
    assert (recipe.loss.name, recipe.loss.distance, recipe.loss.margin) == ("triplet", "euclidean", 5.0)
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.loop.eval_every) == (3, 16, "epoch")
    assert recipe.optimizer.learning_rate == 2e-5


def test_every_key_of_a_full_recipe(read):
    recipe = read(FULL)
    assert recipe.data.prompts == {"anchor": "s2p_query"}
    assert recipe.loss.matryoshka_dims == (64, 32)
    assert isinstance(recipe.loss.margin, float)
    assert recipe.optimizer.learning_rates == {"head/*": 1e-3}
    assert recipe.loop.eval_every == 10


def test_a_recipe_is_frozen(read):
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(LEAST).seed = 1


def test_it_is_json_and_back(read):
    recipe = read(FULL)
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    assert recipe.as_dict()["loss"]["matryoshka_dims"] == [64, 32]


@pytest.mark.parametrize("text", [LEAST, FULL])
def test_it_is_toml_and_back(read, text):
    recipe = read(text, 'output="a \\"b\\" \\\\ ü"')
    assert recipe_of(tomllib.loads(to_toml(recipe))) == recipe


def test_overrides_win_over_the_file(read):
    recipe = read(
        FULL,
        "loop.epochs=1",
        "loss.name = multiple_negatives_ranking",
        "output=/tmp/a b=c",
        "optimizer.learning_rates.head/*=0.5",
        "loss.matryoshka_dims=[32]",
        "data.prompts.positive='passage: '",
        "optimizer.freeze=[]",
        "data.columns=['score']",
    )
    assert recipe.loop.epochs == 1
    assert recipe.loss.name == "multiple_negatives_ranking"
    assert recipe.output == "/tmp/a b=c"
    assert recipe.optimizer.learning_rates == {"head/*": 0.5}
    assert recipe.loss.matryoshka_dims == (32,)
    assert recipe.data.prompts == {"anchor": "s2p_query", "positive": "passage: "}
    assert recipe.optimizer.freeze == ()
    assert recipe.data.columns == ("score",)


def test_overrides_make_sections(read):
    assert read(LEAST, "loop.mesh=data=4,model=2").loop.mesh == "data=4,model=2"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loop.epoch=3", "there is no key loop.epoch; there are epochs, "),
        ("epochs=3", "there is no key epochs; there are model, output, "),
        ("loop.epochs=0", "loop.epochs = 0 must be a whole number of at least 1"),
        ("loop.epochs=1.5", "loop.epochs = 1.5 must be a whole number"),
        ("loop.epochs=true", "loop.epochs = True must be a whole number"),
        ("loop.batch_size=many", "loop.batch_size = 'many' must be a whole number"),
        ("loop.dropout=1", "loop.dropout = 1 must be true or false"),
        ("loop.dtype=float16", "loop.dtype = 'float16' must be 'float32' or 'bfloat16'"),
        ("loop.eval_every=0", "loop.eval_every = 0 must be a whole number of at least 1"),
        ("loop.eval_every=sometimes", "loop.eval_every = 'sometimes' must be 'epoch' or a number of steps"),
        ("loss.name=contrastive", "loss.name = 'contrastive' must be 'triplet' or 'multiple_negatives_ranking'"),
        ("loss.margin=-1", "loss.margin = -1 must be a number of at least 0"),
        ("loss.scale=0", "loss.scale = 0 must be a number above 0"),
        ("loss.scale=nan", "loss.scale = nan must be a number above 0"),
        ("loss.matryoshka_dims=32", "loss.matryoshka_dims = 32 must be a list"),
        ("loss.matryoshka_dims=[32, 0]", "loss.matryoshka_dims[1] = 0 must be a whole number"),
        ("loss.mini_batch=4", "loss.mini_batch goes with loss.name = 'multiple_negatives_ranking'"),
        ("loss=triplet", "loss = 'triplet' must be a section, [loss]"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0 must be a number above 0"),
        ("optimizer.learning_rate='2e-5'", "optimizer.learning_rate = '2e-5' must be a number above 0"),
        ("optimizer.warmup_ratio=2", "optimizer.warmup_ratio = 2 must be a number of at least 0 and of at most 1"),
        ("optimizer.freeze=head", "optimizer.freeze = 'head' must be a list"),
        ("optimizer.learning_rates=1", "optimizer.learning_rates = 1 must be a table"),
        ("data.prompts.query=x", "data.prompts = {'query': 'x'} names 'query'; its keys are anchor, positive and"),
        ("data.columns=score", "data.columns = 'score' must be a list"),
        ("data.columns=['score', 'anchor']", "data.columns names 'anchor', which is a column of texts; leave it out"),
        ("data.train=''", "data.train is empty"),
        ("data.train=3", "data.train = 3 must be a text in quotes"),
        ("loop.early_stop=2", "loop.early_stop needs evaluations; name a file in data.eval"),
        ("loop.export=best", "loop.export = 'best' needs evaluations"),
        ("seed=-1", "seed = -1 must be a whole number"),
        ("loop.epochs", "--set 'loop.epochs' is not of the form section.key=value"),
        ("loop..x=1", "--set 'loop..x=1' is not of the form section.key=value"),
        ("model.x=1", "--set 'model.x=1': model is no section"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(read, override, sentence):
    with pytest.raises(StellaError) as caught:
        read(LEAST, override)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_files(read, tmp_path):
    with pytest.raises(StellaError, match=r"recipe\.toml: output is missing\."):
        read('model = "tiny"\n[data]\ntrain = "t"')
    with pytest.raises(StellaError, match=r"data\.train is missing"):
        read('model = "tiny"\noutput = "o"\n[data]')
    with pytest.raises(StellaError, match=r"data is missing"):
        read('model = "tiny"\noutput = "o"')
    with pytest.raises(StellaError, match="is not TOML"):
        read("model = ")
    with pytest.raises(StellaError, match=r"none\.toml cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
