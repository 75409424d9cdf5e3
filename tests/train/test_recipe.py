"""Recipes: valid files, and errors that name the key."""

import dataclasses
import json
import tomllib
from inspect import signature
from pathlib import Path

import pytest

from train.recipe import Recipe, read_recipe, recipe_of
from train.sections import LOSS_KEYS, NewHeadSection

OWN = """
model = "tiny"
output = "runs/own"
[new_head]
dim = 96
pooling = "cls"
activation = "tanh"
bias = false
[data]
train = "train.jsonl"
columns = ["score"]
[loss]
name = "my_module:my_loss"
mini_batch = 4
[loss.args]
"a b" = [1, 0.5, "\\u007f", { c = true }]
"""

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
matryoshka_weights = [1, 0.5]
[optimizer]
name = "lion"
args = { b1 = 0.9, mu_dtype = "bfloat16" }
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
max_steps = 100
gradient_accumulation_steps = 2
dtype = "float32"
dropout = true
eval_every = 10
best = "own/ndcg@10"
log = ["tensorboard"]
[[evaluators]]
name = "own"
kind = "reranking"
path = "own.jsonl"
k = [5, 10]
prompts = { query = "s2p_query" }
[[evaluators]]
name = "beir"
kind = "retrieval"
path = "beir"
split = "test"
"""


SETS = """
model = "tiny"
output = "runs/sets"
[data]
batches = "round_robin"
columns = ["own"]
[[data.sets]]
path = "a/*.jsonl"
[[data.sets]]
path = ["b.csv.gz", "c.csv"]
name = "second"
weight = 2
columns = { anchor = "query", negative_12 = "n", own = "o" }
max_rows = 10
teachers = ["vectors"]
[[data.sets]]
path = "e.jsonl"
split = "eval"
"""


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, *overrides: str) -> Recipe:
        (tmp_path / "recipe.toml").write_text(text)
        return read_recipe(tmp_path / "recipe.toml", overrides)

    return read


def test_defaults(read):
    recipe = read(LEAST)
    assert (recipe.seed, recipe.dim, recipe.data.eval) == (42, None, None)
    assert (recipe.loss.name, recipe.loss.distance, recipe.loss.margin) == ("triplet", None, None)
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.loop.eval_every) == (3, 16, "epoch")
    assert recipe.optimizer.learning_rate == 2e-5


def test_every_key_of_a_full_recipe(read):
    recipe = read(FULL)
    assert recipe.data.prompts == {"anchor": "s2p_query"}
    assert recipe.loss.matryoshka_dims == (64, 32)
    assert isinstance(recipe.loss.margin, float)
    assert recipe.optimizer.learning_rates == {"head/*": 1e-3}
    assert recipe.loop.eval_every == 10
    assert (recipe.loop.max_steps, recipe.loss.matryoshka_weights) == (100, (1.0, 0.5))
    assert (recipe.optimizer.name, recipe.optimizer.args) == ("lion", {"b1": 0.9, "mu_dtype": "bfloat16"})
    assert recipe.new_head is None


def test_an_own_loss_and_a_new_head(read):
    recipe = read(OWN)
    assert recipe.new_head == NewHeadSection(96, "cls", False, "tanh")
    assert (recipe.loss.name, recipe.loss.mini_batch, recipe.data.columns) == ("my_module:my_loss", 4, ("score",))
    assert recipe.loss.args == {"a b": [1, 0.5, "\x7f", {"c": True}]}
    assert recipe.loss.arguments() == recipe.loss.args
    least = read(LEAST, "new_head.dim=3")
    assert least.new_head == NewHeadSection(3, None, True, "identity")


def test_sets(read):
    data = read(SETS).data
    assert data.sets[:2] == data.sets_of("train") and data.sets[2:] == data.sets_of("eval")
    assert [each.title for each in data.sets] == ["*", "second", "e"]
    assert (data.sets[1].weight, data.sets[1].columns["anchor"], data.sets[1].max_rows) == (2.0, "query", 10)
    assert data.sets[1].path == ("b.csv.gz", "c.csv") and data.sets_of("test") == ()
    short = read(LEAST, 'data.eval=["a.jsonl", "b.jsonl"]').data
    assert [each.path for each in (*short.sets_of("train"), *short.sets_of("eval"))] == [
        "train.jsonl",
        ("a.jsonl", "b.jsonl"),
    ]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sets": []}, "data.train"),
        ({"train": "a.jsonl"}, "data.sets"),
        ({"sets": [{"path": "a.jsonl"}, {"path": "b/a.csv"}]}, "'a'"),
        ({"sets": [{"path": "a.jsonl", "weight": 0}, {"path": "b", "weight": 0}]}, "weights"),
        ({"sets": [{"path": "a.jsonl", "weight": -1}]}, "data.sets[0].weight"),
        ({"sets": [{"path": "a", "columns": {"query": "q"}}]}, "'query'"),
        ({"sets": [{"path": []}]}, "data.sets[0].path"),
        ({"sets": [{"pth": "a"}]}, "data.sets[0].pth"),
        ({"sets": ["a"]}, "data.sets[0]"),
        ({"batches": "random"}, "data.batches"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_sets(changes, name, refused):
    with refused(name):
        recipe_of({"model": "tiny", "output": "o", "data": {"sets": [{"path": "c.jsonl"}]} | changes})


def test_the_keys_of_a_built_in_loss_are_its_arguments(read):
    assert read(FULL).loss.arguments() == {"distance": "euclidean", "margin": 5.0}
    ranking = read(LEAST, "loss.name=multiple_negatives_ranking", "loss.directions=['query_to_doc']").loss
    assert ranking.arguments() == {"directions": ("query_to_doc",)}


def test_every_keyword_argument_of_a_built_in_loss_is_a_key():
    from train.losses import BUILT_IN

    for name, spec in BUILT_IN.items():
        parameters = signature(spec.function).parameters.values()
        names = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} - {"matryoshka_dims"}
        assert {*LOSS_KEYS[name]} == names
    assert LOSS_KEYS.keys() == BUILT_IN.keys()


def test_a_recipe_is_frozen(read):
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(LEAST).seed = 1


@pytest.mark.parametrize("text", [LEAST, OWN, SETS])
def test_a_recipe_is_json(read, text):
    assert json.loads(json.dumps(read(text).as_dict())) == read(text).as_dict()


def test_a_recipe_survives_json(read):
    recipe = read(FULL)
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    assert recipe.as_dict()["loss"]["matryoshka_dims"] == [64, 32]


@pytest.mark.parametrize("text", [LEAST, FULL, OWN, SETS])
def test_a_recipe_survives_toml(read, text):
    recipe = read(text, 'output="a \\"b\\" \\\\ ü"')
    assert recipe_of(tomllib.loads(recipe.to_toml())) == recipe


def test_overrides_replace_the_file(read):
    recipe = read(
        FULL,
        "loop.epochs=1",
        "loss.name = multiple_negatives_ranking",
        "output=/tmp/a b=c",
        "optimizer.learning_rates.head/*=0.5",
        "loss.matryoshka_dims=[32]",
        "loss.matryoshka_weights=[]",
        "data.prompts.positive='passage: '",
        "optimizer.freeze=[]",
        "data.columns=['score']",
        "optimizer.args.b1=0.8",
    )
    assert recipe.loop.epochs == 1
    assert recipe.loss.name == "multiple_negatives_ranking"
    assert recipe.output == "/tmp/a b=c"
    assert recipe.optimizer.learning_rates == {"head/*": 0.5}
    assert recipe.loss.matryoshka_dims == (32,)
    assert recipe.data.prompts == {"anchor": "s2p_query", "positive": "passage: "}
    assert recipe.optimizer.freeze == ()
    assert recipe.data.columns == ("score",)
    assert recipe.optimizer.args == {"b1": 0.8, "mu_dtype": "bfloat16"}


def test_an_override_creates_its_section(read):
    assert read(LEAST, "loop.mesh=data=4,model=2").loop.mesh == "data=4,model=2"


@pytest.mark.parametrize(
    "override",
    [
        "loop.epoch=3",
        "lora.rank=0",
        "lora.alpha=inf",
        "lora.dropout=1",
        "lora.targets=3",
        "epochs=3",
        "loop.epochs=0",
        "loop.epochs=1.5",
        "loop.epochs=true",
        "loop.batch_size=many",
        "loop.dropout=1",
        "loop.dtype=float16",
        "loop.eval_every=0",
        "loop.eval_every=sometimes",
        "loop.max_steps=0",
        "loss.name=''",
        "loss.args={margin=1}",
        "loss.args=1",
        "loss.matryoshka_weights=[1]",
        "loss={matryoshka_dims=[4,2], matryoshka_weights=[1]}",
        "loss.matryoshka_weights=[-1]",
        "loss={name='a:b', partition_mode='joint'}",
        "optimizer.name=1",
        "optimizer.args.b1=nan",
        "optimizer.args.b1=[1, -inf]",
        "optimizer.args.b1=1979-05-27",
        "new_head={}",
        "new_head.dim=0",
        "new_head={dim=3, pooling='max'}",
        "new_head={dim=3, activation='gelu'}",
        "new_head=64",
        "data.columns=['weights']",
        "loss.margin=-1",
        "loss.scale=0",
        "loss.scale=nan",
        "loss.matryoshka_dims=32",
        "loss.matryoshka_dims=[32, 0]",
        "loss.partition_mode=joint",
        "loss.temperature=1",
        "loss.temperature=0",
        "loss={name='gist_embed', guide='tiny', margin_strategy='some'}",
        "loss.name=gist_embed",
        "loss.guide=tiny",
        "loss={name='stella_distillation', matryoshka_dims=[4], matryoshka_weights=[1]}",
        "loss=triplet",
        "optimizer.learning_rate=0",
        "optimizer.learning_rate='2e-5'",
        "optimizer.warmup_ratio=2",
        "optimizer.freeze=head",
        "optimizer.learning_rates=1",
        "data.prompts={query='x'}",
        "data.columns=score",
        "data.columns=['score', 'anchor']",
        "data.train=''",
        "data.train=3",
        "loop.early_stop=2",
        "loop.export=best",
        "loop.best=loss",
        "loop.log=['mlflow']",
        "evaluators=own",
        "evaluators=[{name='a', kind='pairs'}]",
        "evaluators=[{name='a', kind='sts', path='p'}]",
        "evaluators=[{name='a', kind='pairs', path='p', at=3}]",
        "evaluators=[{name='a/b', kind='pairs', path='p'}]",
        "seed=-1",
        "loop.epochs",
        "loop..x=1",
        "model.x=1",
        "loss={name='multiple_negatives_ranking', directions='query_to_doc'}",
        "loss={name='multiple_negatives_ranking', directions=['query_to_document']}",
        "loss={name='multiple_negatives_ranking', hardness_mode='hard'}",
        "loss={name='multiple_negatives_ranking', hardness_strength=-1}",
        "loss={name='multiple_negatives_ranking', partition_mode='separate'}",
    ],
)
def test_invalid_overrides(read, override, refused):
    with refused(override.partition("=")[0]) as caught:
        read(LEAST, override)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_fault_names_the_file_and_the_option(read, refused):
    with refused("recipe.toml with --set: loop.epochs"):
        read(LEAST, "seed=1", "loop.epochs=four")


def test_names_of_evaluators_are_unique(read, refused):
    one = "{name='a', kind='pairs', path='p'}"
    with refused("evaluators", "'a'"):
        read(LEAST, f"evaluators=[{one}, {one}]")
    assert read(LEAST, f"evaluators=[{one}]", "loop.best='a/spearman_dot'").evaluators[0].split == "eval"


def test_a_new_head_excludes_dim(read, refused):
    with refused("dim", "new_head"):
        read(LEAST, "new_head.dim=64", "dim=64")


def test_a_new_head_beside_adapters_must_train(read, refused):
    with refused("new_head", "lora.head"):
        read(LEAST, "new_head.dim=64", "lora.rank=4")


def test_mini_batches_exclude_accumulation_steps(read, refused):
    with refused("loss.mini_batch", "loop.gradient_accumulation_steps"):
        read(OWN, "loop.gradient_accumulation_steps=2")


def test_more_accumulation_steps_than_rows(read, refused):
    with refused("loop.gradient_accumulation_steps"):
        read(LEAST, "loop.gradient_accumulation_steps=17")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('model = "tiny"\n[data]\ntrain = "t"', "output"),
        ('model = "tiny"\noutput = "o"\n[data]', "data.train"),
        ('model = "tiny"\noutput = "o"', "data"),
    ],
    ids=["output", "data.train", "data"],
)
def test_missing_keys(read, refused, text, name):
    with refused("recipe.toml", name):
        read(text)


def test_files_that_are_not_recipes(read, tmp_path, refused):
    with refused("recipe.toml: ", mask=r"\(.*\)"):
        read("model = ")
    with refused("none.toml: "):
        read_recipe(tmp_path / "none.toml")
