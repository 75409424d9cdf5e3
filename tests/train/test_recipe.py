"""Recipes: valid files, and errors that name the key."""

import dataclasses
import json
import tomllib
from inspect import signature
from pathlib import Path

import pytest

from stella_jax import StellaError
from train.recipe import LOSS_KEYS, NewHeadSection, Recipe, read_recipe, recipe_of, to_toml

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


def test_what_is_left_out_has_its_default(read):
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


def test_every_key_of_a_loss_and_a_head_of_ones_own(read):
    recipe = read(OWN)
    assert recipe.new_head == NewHeadSection(96, "cls", False, "tanh")
    assert (recipe.loss.name, recipe.loss.mini_batch, recipe.data.columns) == ("my_module:my_loss", 4, ("score",))
    assert recipe.loss.args == {"a b": [1, 0.5, "\x7f", {"c": True}]}
    assert recipe.loss.arguments() == recipe.loss.args
    least = read(LEAST, "new_head.dim=3")
    assert least.new_head == NewHeadSection(3, None, True, "identity")


def test_sets_of_rows(read):
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
    ("changes", "said"),
    [
        ({"sets": []}, "data.train is missing"),
        ({"train": "a.jsonl"}, "data.train and data.sets both have rows of the split train"),
        ({"sets": [{"path": "a.jsonl"}, {"path": "b/a.csv"}]}, "two sets of the split train are called 'a'"),
        (
            {"sets": [{"path": "a.jsonl", "weight": 0}, {"path": "b", "weight": 0}]},
            "all weights of the train split are 0",
        ),
        ({"sets": [{"path": "a.jsonl", "weight": -1}]}, "data.sets[0].weight = -1 must be a number of at least 0"),
        ({"sets": [{"path": "a", "columns": {"query": "q"}}]}, "data.sets[0].columns: unknown key 'query'"),
        ({"sets": [{"path": []}]}, "data.sets[0].path is empty"),
        ({"sets": [{"pth": "a"}]}, "unknown key data.sets[0].pth"),
        ({"sets": ["a"]}, "data.sets[0] = 'a' must be a section"),
        ({"batches": "random"}, "data.batches = 'random' must be 'proportional' or 'round_robin'"),
    ],
)
def test_sets_that_make_no_training(changes, said):
    with pytest.raises(StellaError) as caught:
        recipe_of({"model": "tiny", "output": "o", "data": {"sets": [{"path": "c.jsonl"}]} | changes})
    assert said in str(caught.value)


def test_the_arguments_of_a_built_in_are_its_keys(read):
    assert read(FULL).loss.arguments() == {"distance": "euclidean", "margin": 5.0}
    ranking = read(LEAST, "loss.name=multiple_negatives_ranking", "loss.symmetric=true").loss
    assert ranking.arguments() == {"symmetric": True}


def test_the_keys_of_a_loss_are_the_keyword_arguments_of_its_function():
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
def test_it_is_json(read, text):
    assert json.loads(json.dumps(read(text).as_dict())) == read(text).as_dict()


def test_it_is_json_and_back(read):
    recipe = read(FULL)
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    assert recipe.as_dict()["loss"]["matryoshka_dims"] == [64, 32]


@pytest.mark.parametrize("text", [LEAST, FULL, OWN, SETS])
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


def test_overrides_make_sections(read):
    assert read(LEAST, "loop.mesh=data=4,model=2").loop.mesh == "data=4,model=2"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loop.epoch=3", "unknown key loop.epoch; known keys: epochs, "),
        ("lora.rank=0", "lora.rank = 0 must be a whole number of at least 1 and of at most 8192."),
        ("lora.alpha=inf", "lora.alpha = inf must be a number above 0."),
        ("lora.dropout=1", "lora.dropout = 1 must be a number of at least 0 and of at most 0.99."),
        ("lora.targets=3", "lora.targets = 3 must be a text in quotes."),
        ("epochs=3", "unknown key epochs; known keys: model, output, "),
        ("loop.epochs=0", "loop.epochs = 0 must be a whole number of at least 1"),
        ("loop.epochs=1.5", "loop.epochs = 1.5 must be a whole number"),
        ("loop.epochs=true", "loop.epochs = True must be a whole number"),
        ("loop.batch_size=many", "loop.batch_size = 'many' must be a whole number"),
        ("loop.dropout=1", "loop.dropout = 1 must be true or false"),
        ("loop.dtype=float16", "loop.dtype = 'float16' must be 'float32' or 'bfloat16'"),
        ("loop.eval_every=0", "loop.eval_every = 0 must be a whole number of at least 1"),
        ("loop.eval_every=sometimes", "loop.eval_every = 'sometimes' must be 'epoch' or a number of steps"),
        ("loop.max_steps=0", "loop.max_steps = 0 must be a whole number of at least 1"),
        ("loss.name=''", "loss.name is empty"),
        ("loss.args.margin=1", 'loss.args goes with a function of your own, loss.name = "my_module:my_loss"'),
        ("loss.args=1", "loss.args = 1 must be a table"),
        ("loss.matryoshka_weights=[1]", "loss.matryoshka_weights has 1 numbers for 0 loss.matryoshka_dims"),
        ("loss={matryoshka_dims=[4,2], matryoshka_weights=[1]}", "loss.matryoshka_weights has 1 numbers for 2 loss"),
        ("loss.matryoshka_weights=[-1]", "loss.matryoshka_weights[0] = -1 must be a number of at least 0"),
        ("loss={name='a:b', symmetric=true}", "pass it to 'a:b' as loss.args.symmetric"),
        ("optimizer.name=1", "optimizer.name = 1 must be a text in quotes"),
        ("optimizer.args.b1=nan", "optimizer.args.b1 = nan must be a string, a finite number"),
        ("optimizer.args.b1=[1, -inf]", "optimizer.args.b1[1] = -inf must be "),
        ("optimizer.args.b1=1979-05-27", "optimizer.args.b1 = datetime.date(1979, 5, 27) must be "),
        ("new_head={}", "new_head.dim is missing"),
        ("new_head.dim=0", "new_head.dim = 0 must be a whole number of at least 1 and of at most 1000000"),
        ("new_head={dim=3, pooling='max'}", "new_head.pooling = 'max' must be 'mean' or 'cls'"),
        ("new_head={dim=3, activation='gelu'}", "new_head.activation = 'gelu' must be 'identity' or 'tanh'"),
        ("new_head=64", "new_head = 64 must be a section, [new_head]"),
        ("data.columns=['weights']", "data.columns: 'weights' is a reserved name"),
        ("loss.margin=-1", "loss.margin = -1 must be a number of at least 0"),
        ("loss.scale=0", "loss.scale = 0 must be a number above 0"),
        ("loss.scale=nan", "loss.scale = nan must be a number above 0"),
        ("loss.matryoshka_dims=32", "loss.matryoshka_dims = 32 must be a list"),
        ("loss.matryoshka_dims=[32, 0]", "loss.matryoshka_dims[1] = 0 must be a whole number"),
        (
            "loss.symmetric=true",
            "loss.symmetric goes with loss.name = 'multiple_negatives_ranking', not with 'triplet'",
        ),
        ("loss.temperature=1", "loss.temperature goes with loss.name = 'gist_embed' or 'kl_distillation', not"),
        ("loss.temperature=0", "loss.temperature = 0 must be a number above 0"),
        ("loss={name='gist_embed', guide='tiny', margin_strategy='some'}", "must be 'absolute' or 'relative'"),
        ("loss.name=gist_embed", "needs a guide; name a checkpoint in loss.guide"),
        ("loss.guide=tiny", "loss.guide goes with loss.name = 'gist_embed' or a function of your own"),
        (
            "loss={name='stella_distillation', matryoshka_dims=[4], matryoshka_weights=[1]}",
            "loss.matryoshka_weights: 'stella_distillation' weighs its prefixes alike",
        ),
        ("loss=triplet", "loss = 'triplet' must be a section, [loss]"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0 must be a number above 0"),
        ("optimizer.learning_rate='2e-5'", "optimizer.learning_rate = '2e-5' must be a number above 0"),
        ("optimizer.warmup_ratio=2", "optimizer.warmup_ratio = 2 must be a number of at least 0 and of at most 1"),
        ("optimizer.freeze=head", "optimizer.freeze = 'head' must be a list"),
        ("optimizer.learning_rates=1", "optimizer.learning_rates = 1 must be a table"),
        ("data.prompts.query=x", "data.prompts = {'query': 'x'}: unknown key 'query'; known keys: anchor, positive, "),
        ("data.columns=score", "data.columns = 'score' must be a list"),
        ("data.columns=['score', 'anchor']", "data.columns: 'anchor' is a column of texts"),
        ("data.train=''", "data.train is empty"),
        ("data.train=3", "data.train = 3 must be a text in quotes"),
        ("loop.early_stop=2", "loop.early_stop needs evaluations; name a file in data.eval"),
        ("loop.export=best", "loop.export = 'best' needs evaluations"),
        ("loop.best=loss", "loop.best needs evaluations"),
        ("loop.log=['mlflow']", "loop.log[0] = 'mlflow' must be 'tensorboard' or 'wandb'"),
        ("evaluators=own", "evaluators[0] = 'own' must be a section"),
        ("evaluators=[{name='a', kind='pairs'}]", "evaluators[0].path is missing"),
        ("evaluators=[{name='a', kind='sts', path='p'}]", "evaluators[0].kind = 'sts' must be 'retrieval' or 'pairs'"),
        ("evaluators=[{name='a', kind='pairs', path='p', at=3}]", "unknown key evaluators[0].at"),
        ("evaluators=[{name='a/b', kind='pairs', path='p'}]", "evaluators: the name 'a/b' "),
        ("seed=-1", "seed = -1 must be a whole number"),
        ("loop.epochs", "--set 'loop.epochs': not of the form section.key=value"),
        ("loop..x=1", "--set 'loop..x=1': not of the form section.key=value"),
        ("model.x=1", "--set 'model.x=1': model is not a section"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(read, override, sentence):
    with pytest.raises(StellaError) as caught:
        read(LEAST, override)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_names_of_evaluators_are_unique(read):
    one = "{name='a', kind='pairs', path='p'}"
    with pytest.raises(StellaError, match="evaluators: the name 'a' "):
        read(LEAST, f"evaluators=[{one}, {one}]")
    assert read(LEAST, f"evaluators=[{one}]", "loop.best='a/spearman_dot'").evaluators[0].split == "eval"


def test_a_new_head_takes_the_place_of_dim(read):
    with pytest.raises(StellaError, match="dim and new_head both"):
        read(LEAST, "new_head.dim=64", "dim=64")


def test_two_ways_to_cut_a_batch_are_one_too_many(read):
    with pytest.raises(StellaError, match=r"loss\.mini_batch and loop\.gradient_accumulation_steps"):
        read(OWN, "loop.gradient_accumulation_steps=2")


def test_missing_keys_and_files(read, tmp_path):
    with pytest.raises(StellaError, match=r"recipe\.toml: output is missing"):
        read('model = "tiny"\n[data]\ntrain = "t"')
    with pytest.raises(StellaError, match=r"data\.train is missing"):
        read('model = "tiny"\noutput = "o"\n[data]')
    with pytest.raises(StellaError, match=r"data is missing"):
        read('model = "tiny"\noutput = "o"')
    with pytest.raises(StellaError, match="not valid TOML"):
        read("model = ")
    with pytest.raises(StellaError, match=r"none\.toml: cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
