"""A recipe: everything a training run follows from, read from TOML and checked before anything is loaded.

Each class is a section, each attribute a key; what is left out has the value given here.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, first_line, quoted, short_repr
from stella_jax.job.location import open_regular
from stella_jax.weight_map import ALL_LINEAR
from train.fields import every, number, one_of, override, optional_one_of, section

SPLITS = ("train", "eval", "test")
COLUMNS = ("anchor", "positive", "negative")

# The keys of [loss] that each built-in loss takes: its keyword arguments.
LOSS_KEYS = {
    "triplet": ("distance", "margin"),
    "multiple_negatives_ranking": ("scale", "symmetric"),
    "gist_embed": ("temperature", "margin_strategy", "margin", "contrast_anchors", "contrast_positives"),
    "cosent": ("scale",),
    "margin_mse": ("similarity",),
    "kl_distillation": ("similarity", "temperature"),
    "stella_distillation": ("margin", "cosine_weight", "similarity_weight", "triplet_weight"),
}

# Columns that a set may call otherwise, beside those of `data.columns`.
RENAMED = re.compile("anchor|positive|negative(_([2-9]|[1-9][0-9]+))?|score|label|teacher|id")

Paths = str | tuple[str, ...]

LARGEST_FILE = 2**15  # tomllib takes seconds for that, and the square of it for more

# Bounds of what is planned before the first step: the epochs of a run, its steps, and the rows of one.
MOST_EPOCHS = 100_000
MOST_STEPS = 10_000_000
MOST_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class SetSection:
    """One of several sets of rows, `[[data.sets]]`.

    Attributes:
      path: a file or URL, or several; a pattern or directory stands for its files.
      split: what it is for, train, eval or test.
      name: in the card and before its scores; None is the first file's, up to its first dot.
      weight: how often its rows come in an epoch, where batches are proportional; how many turns it has, where they are
        round_robin. 0 leaves it out.
      columns: column -> what the files call it.
      max_rows: how many of the rows are taken, from the first.
      teachers: as in `DataSection`, for this set alone.
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
        """Its name, given or not."""
        first = self.path if isinstance(self.path, str) else self.path[0]
        return self.name or first.rstrip("/").rpartition("/")[2].partition(".")[0] or first


@dataclass(frozen=True, slots=True)
class DataSection:
    """Where the rows lie (JSONL, CSV, Parquet) and how they come into batches.

    Attributes:
      train: the files of the rows to train on, where they are one set.
      eval: the same of the rows that are evaluated during training.
      test: the same of the rows that are evaluated before and after.
      sets: of the splits that are not named so.
      batches: of several sets, each of one of them: proportional, all of them in random order; or round_robin, one of
        each in turns until one of the sets has no more.
      batch_sampler: no_duplicates (no text twice in a batch), shuffle, or sequential (in the order of the file).
      drop_last: leave out batches that are not full.
      skip_faulty: leave out rows that cannot be trained on, such as those whose anchor is its own positive.
      columns: further columns of finite numbers, or of lists of them, that the loss is to be given.
      teachers: outputs of `embed`, whose vectors are joined to the rows by their column `id`: normalized, one teacher's
        after the other, and normalized again. They are the column `teacher`.
      prompts: column -> what is put before its texts: the name of one of the checkpoint's prompts, or a text with a
        space in it. That of `negative` is for all negatives.
      max_length: tokens at which a text is cut; None is the checkpoint's own limit.
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
        """The sets of a split, however it is named."""
        path: Paths | None = getattr(self, split)
        return (SetSection(path, split),) if path else tuple(each for each in self.sets if each.split == split)


@dataclass(frozen=True, slots=True)
class LossSection:
    """What is made small; keys that are None have the value that the loss itself gives them, see `train.losses`.

    Attributes:
      name: a built-in loss, one of `LOSS_KEYS`, or "my_module:my_loss", a function of one's own as in `train.losses`,
        whose module lies in the working directory or is installed.
      args: keyword arguments of a function of one's own.
      guide: the frozen model that gist_embed is guided by, as in `Stella.from_pretrained`; it needs the model's
        tokenizer.
      mini_batch: rows that pass the encoder at once, however large the batch; None is all. Value and gradient stay the
        same, for a loss that compares rows by GradCache.
      matryoshka_dims: the loss is the sum over these prefixes of an embedding; none is the whole embedding alone.
        stella_distillation averages over them what it says.
      matryoshka_weights: what the loss of each prefix is multiplied by; none is 1 each.
      distance: of triplet.
      margin: of triplet, gist_embed, stella_distillation.
      margin_strategy: of gist_embed.
      contrast_anchors: of gist_embed.
      contrast_positives: of gist_embed.
      scale: of multiple_negatives_ranking and cosent.
      symmetric: of multiple_negatives_ranking, which then ranks anchors for each positive, too.
      similarity: of margin_mse and kl_distillation.
      temperature: of gist_embed and kl_distillation.
      cosine_weight: of the term `cosine` of stella_distillation.
      similarity_weight: of its term `similarity`.
      triplet_weight: of its term `triplet`.
    """

    name: str = "triplet"
    args: dict[str, Any] = field(default_factory=dict)
    guide: str | None = None
    mini_batch: int | None = number(None, least=1)
    matryoshka_dims: tuple[int, ...] = number((), least=1)
    matryoshka_weights: tuple[float, ...] = number((), least=0)
    distance: str | None = optional_one_of("euclidean", "cosine", "manhattan")
    margin: float | None = number(None, least=0)
    margin_strategy: str | None = optional_one_of("absolute", "relative")
    contrast_anchors: bool | None = None
    contrast_positives: bool | None = None
    scale: float | None = number(None, above=0)
    symmetric: bool | None = None
    similarity: str | None = optional_one_of("dot", "cosine")
    temperature: float | None = number(None, above=0)
    cosine_weight: float | None = number(None, least=0)
    similarity_weight: float | None = number(None, least=0)
    triplet_weight: float | None = number(None, least=0)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the function that `name` names, as far as they are given."""
        given = {key: getattr(self, key) for key in LOSS_KEYS.get(self.name, ())}
        return {key: value for key, value in given.items() if value is not None} | self.args


@dataclass(frozen=True, slots=True)
class OptimizerSection:
    """An optimizer of optax, its schedule, and what it may change.

    Attributes:
      name: of a function of optax or optax.contrib, such as adamw, lion, adafactor, sgd or muon.
      args: further arguments of that function.
      learning_rate: the peak of the schedule.
      schedule: cosine and linear fall to 0 by the last step, constant stays.
      warmup_ratio: share of the steps over which the learning rate rises from 0.
      weight_decay: of matrices; biases and norms have none.
      max_grad_norm: the gradient is scaled down to this length; 0 leaves it.
      train_only: patterns of parameter names, such as "head/*" or "encoder/layers/23/*"; all others are frozen.
      freeze: patterns of parameters that do not train.
      learning_rates: pattern -> the peak learning rate of the parameters that it names.
    """

    name: str = "adamw"
    args: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = number(2e-5, above=0)
    schedule: str = one_of("cosine", "linear", "constant")
    warmup_ratio: float = number(0.1, least=0, most=1)
    weight_decay: float = number(0.0, least=0)
    max_grad_norm: float = number(1.0, least=0)
    train_only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    learning_rates: dict[str, float] = field(default_factory=dict, metadata={"least": 0})


@dataclass(frozen=True, slots=True)
class LoopSection:
    """How long, how much at once, on what, and what is kept.

    Attributes:
      epochs: how often all rows are trained on.
      max_steps: end after so many steps, in place of `epochs`.
      batch_size: rows of an optimizer step, over all devices and accumulation steps.
      dtype: what is computed in; parameters and moments are float32.
      dropout: false switches off the checkpoint's hidden_dropout_prob.
      eval_every: "epoch", or a number of steps.
      save_every: "epoch", or a number of steps.
      best: the score of "eval" by which evaluations are compared, such as "loss" or "name/cosine_ndcg@10" of an
        evaluator; None is cosine_accuracy of rows with negatives, cosine_mrr@10 of others, and without such rows the
        main score of the first evaluator.
      log: where all numbers of metrics.jsonl go as well, of "tensorboard" (events in `output`) and "wandb".
      early_stop: end after so many evaluations without a better one.
      keep: how many of the newest checkpoints stay, beside the best.
      gradient_accumulation_steps: parts that a batch is cut into, one in memory at a time.
      export: which weights are exported, those of the last step or of the best evaluation.
      remat: compute each layer again for its gradient, which takes time and saves memory.
      mesh: devices, of all hosts together, such as "data=4,model=2"; None is one.
      fsdp: split parameters and moments over the mesh's `data` axis, too.
    """

    epochs: int = number(3, least=1, most=MOST_EPOCHS)
    max_steps: int | None = number(None, least=1, most=MOST_STEPS)
    batch_size: int = number(16, least=1, most=MOST_ROWS)
    gradient_accumulation_steps: int = number(1, least=1)
    dtype: str = one_of("float32", "bfloat16")
    dropout: bool = True
    eval_every: str | int = every()
    save_every: str | int = every()
    best: str | None = None
    log: tuple[str, ...] = field(default=(), metadata={"choices": ("tensorboard", "wandb")})
    early_stop: int | None = number(None, least=1)
    keep: int = number(2, least=1)
    export: str = one_of("last", "best")
    remat: bool = False
    mesh: str | None = None
    fsdp: bool = False


@dataclass(frozen=True, slots=True)
class LoraSection:
    """Low-rank adapters on the layers, which train in place of all else.

    Attributes:
      rank: of the two small matrices of an adapter.
      alpha: what an adapter adds is multiplied by alpha / rank.
      dropout: share of an adapter's inputs that are zeroed in training, whatever the encoder's own dropout.
      targets: the linear layers that get an adapter, such as ["q_proj", "v_proj"], or "all-linear".
      head: whether the head trains beside the adapters.
    """

    rank: int = number(8, least=1, most=8192)
    alpha: float = number(16.0, above=0)
    dropout: float = number(0.0, least=0, most=0.99)
    targets: str | tuple[str, ...] = ALL_LINEAR
    head: bool = False


@dataclass(frozen=True, slots=True)
class NewHeadSection:
    """A Dense head that the checkpoint does not have: drawn at random by the recipe's seed, and trained through.

    Attributes:
      dim: numbers of its embeddings.
      pooling: what it is put on, mean or cls; None is the checkpoint's own.
      bias: whether it has one.
      activation: identity or tanh.
    """

    dim: int = number(dataclasses.MISSING, least=1, most=1_000_000)
    pooling: str | None = field(default=None, metadata={"choices": ("mean", "cls")})
    bias: bool = True
    activation: str = one_of("identity", "tanh")


@dataclass(frozen=True, slots=True)
class EvaluatorSection:
    """An evaluator beside that of the split's own rows; its scores are called `name/score`.

    Attributes:
      name: put before its scores; unique, and no set's name.
      kind: retrieval, pairs (of texts with a score), reranking or triplets.
      path: retrieval: a directory with `queries` and `corpus` (`_id`, `text`, perhaps `title`) as .jsonl, .csv or
        .parquet and `qrels`, as BEIR has them. Else a file: pairs of `sentence1`, `sentence2`, `score`; reranking of
        `query`, `positive`, `negative`, the latter two lists or single texts; triplets of `anchor`, `positive`,
        `negative`.
      split: with whose evaluations it runs; those of "test" are the first and the last.
      qrels: of retrieval, in the directory: query id, corpus id and score, tab-separated; above 0 is relevant.
      measure: of retrieval and reranking; pairs and triplets have scores by each.
      k: ranks at which retrieval and reranking are cut; none is what sentence-transformers takes.
      prompts: of `query` and `document`, as in `data.prompts`; by default those of anchor and positive there. Pairs
        take that of `query` for both texts, by default none.
    """

    name: str
    kind: str = field(metadata={"choices": ("retrieval", "pairs", "reranking", "triplets")})
    path: str = field()
    split: str = one_of("eval", "test")
    qrels: str = "qrels/test.tsv"
    measure: str = one_of("cosine", "dot", "euclidean", "manhattan")
    k: tuple[int, ...] = number((), least=1)
    prompts: dict[str, str] = field(default_factory=dict, metadata={"keys": ("query", "document")})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The whole of it.

    Attributes:
      model: "tiny", a directory or a repo id, as in `Stella.from_pretrained`.
      output: directory of metrics, checkpoints and export.
      data: the table [data].
      loss: the table [loss].
      optimizer: the table [optimizer].
      loop: the table [loop].
      lora: the table [lora]; without it all parameters train.
      revision: branch, tag or commit of a repo.
      dim: the head to train through, by its dimension; None is the checkpoint's own.
      new_head: the table [new_head], a head of its own in place of `dim`.
      evaluators: tables [[evaluators]], one each.
      seed: of the order of the rows, of dropout, of a new head and of adapters.
    """

    model: str
    output: str
    data: DataSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    loop: LoopSection = LoopSection()
    lora: LoraSection | None = None
    new_head: NewHeadSection | None = None
    evaluators: tuple[EvaluatorSection, ...] = ()
    revision: str | None = None
    dim: int | None = number(None, least=1)
    seed: int = number(42, least=0, most=2**32 - 1)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, all keys with their values."""
        return _plain(dataclasses.asdict(self))


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file.

    Args:
      overrides: "section.key=value" each, in place of what the file says; the value is TOML, or a bare text.

    Raises:
      StellaError: the file cannot be read, or a key is unknown, missing, of a wrong type or an impossible value.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise StellaError(f"{quoted(path)}: larger than {LARGEST_FILE} bytes; no recipe is.")
        tree = tomllib.loads(content.decode())
    except StellaError:
        raise
    except RecursionError as error:
        raise StellaError(f"{quoted(path)}: a value is nested too deeply; write it in fewer levels.") from error
    except OSError as error:
        raise StellaError(f"{quoted(path)} cannot be read: {error.strerror}; pass a recipe, a .toml file.") from error
    except ValueError as error:  # wrong TOML, wrong UTF-8, and a NUL in the path
        raise StellaError(f"{quoted(path)} is not TOML: {first_line(error)[:200]}.") from error
    for text in overrides:
        override(tree, text)
    return recipe_of(tree, quoted(path))


def recipe_of(tree: dict[str, Any], where: str = "the recipe") -> Recipe:
    """The recipe of a parsed file; `where` it is from stands in errors, which are raised as in `read_recipe`."""
    try:
        recipe: Recipe = section(Recipe, tree, "", where)
        json.dumps(recipe.as_dict())
    except RecursionError as error:
        raise StellaError(f"{where}: a value is nested too deeply; write it in fewer levels.") from error
    for wrong in _conflicts(recipe):
        raise StellaError(f"{where}: {wrong}.")
    return recipe


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """What keys that are sound by themselves make impossible together."""
    loss, loop = recipe.loss, recipe.loop
    yield from _loss_conflicts(loss)
    yield from _conflicts_of_sets(recipe.data)
    for name in set(recipe.data.columns).intersection((*COLUMNS, "weights", "guide")):
        what = {"weights": "the weights of rows", "guide": "what a guide makes"}.get(name, "a column of texts")
        yield f"data.columns names {name!r}, which is {what}; leave it out"
    if recipe.new_head and recipe.dim is not None:
        yield "dim picks a head that is there and new_head makes one; set one of them"
    if recipe.new_head and recipe.lora and not recipe.lora.head:
        yield "new_head is drawn at random, and with [lora] it would stay so; set lora.head = true"
    evaluated = recipe.data.sets_of("eval") or any(each.split == "eval" for each in recipe.evaluators)
    if not evaluated and (loop.early_stop or loop.best or loop.export == "best"):
        key = "early_stop" if loop.early_stop else "best" if loop.best else "export = 'best'"
        yield f"loop.{key} needs evaluations; name a file in data.eval or an evaluator"
    names = [each.name for each in recipe.evaluators]
    taken = {each.title for split in SPLITS for each in recipe.data.sets_of(split)}
    for name in names:
        if names.count(name) > 1 or "/" in name or name in taken:
            yield f"evaluators: {short_repr(name)} must be unique, no set's name and without '/'; choose another name"
    if loop.gradient_accumulation_steps > loop.batch_size:
        yield (
            f"loop.gradient_accumulation_steps = {loop.gradient_accumulation_steps} leaves no row of loop.batch_size = "
            f"{loop.batch_size} for each part; lower it"
        )
    if loop.gradient_accumulation_steps > 1 and loss.mini_batch:
        yield "loss.mini_batch and loop.gradient_accumulation_steps both cut the batch; use one of them"


def _conflicts_of_sets(data: DataSection) -> Iterator[str]:
    for i, each in enumerate(data.sets):
        if not each.path:
            yield f"data.sets[{i}].path is empty; name a file"
    if not data.sets_of("train"):
        yield "data.train is missing; name a file, or several as [[data.sets]]"
    for split in SPLITS:
        names = [each.title for each in data.sets_of(split)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if getattr(data, split) and any(each.split == split for each in data.sets):
            yield f"data.{split} and data.sets both name rows of the split {split}; use one of them"
        if twice is not None:
            yield f"data.sets: two sets of the split {split} are called {twice!r}; give each a name"
    if not sum(each.weight for each in data.sets_of("train")):
        yield "data.sets: the weights sum to 0, so there is nothing to train on; give a set a weight above 0"
    for i, each in enumerate(data.sets):
        unknown = [name for name in each.columns if not RENAMED.fullmatch(name) and name not in data.columns]
        if unknown:
            yield (
                f"data.sets[{i}].columns names {short_repr(unknown[0])}; its keys are anchor, positive, negative, "
                "negative_2 and so on, score, label, teacher, id and those of data.columns"
            )


def _loss_conflicts(loss: LossSection) -> Iterator[str]:
    own, name = ":" in loss.name, short_repr(loss.name)
    for key in dict.fromkeys(key for keys in LOSS_KEYS.values() for key in keys):
        if getattr(loss, key) is None or key in LOSS_KEYS.get(loss.name, ()):
            continue
        if own:
            yield f"loss.{key} is for a built-in loss; pass it to {name} as loss.args.{key}"
        elif key not in ("distance", "margin", "scale"):  # which may stay when the name is overridden
            names = " or ".join(repr(each) for each, keys in LOSS_KEYS.items() if key in keys)
            yield f"loss.{key} goes with loss.name = {names}, not with {name}"
    if loss.args and not own:
        yield 'loss.args goes with a function of your own, loss.name = "my_module:my_loss"'
    if loss.name == "gist_embed" and not loss.guide:
        yield "loss.name = 'gist_embed' needs a guide; name a checkpoint in loss.guide"
    if loss.guide and not own and loss.name != "gist_embed":
        yield f"loss.guide goes with loss.name = 'gist_embed' or a function of your own, not with {name}"
    if loss.matryoshka_weights and len(loss.matryoshka_weights) != len(loss.matryoshka_dims):
        yield (
            f"loss.matryoshka_weights has {len(loss.matryoshka_weights)} numbers for {len(loss.matryoshka_dims)} "
            "loss.matryoshka_dims; give one each"
        )
    if loss.matryoshka_weights and loss.name == "stella_distillation":
        yield f"loss.matryoshka_weights: {name} weighs its prefixes alike; leave the key out"


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file with every key that has a value."""
    tree = recipe.as_dict()
    tables = [(f"[[{name}]]", table) for name in ("evaluators",) for table in tree.pop(name)]
    top = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    sections = [(f"[{name}]", value) for name, value in tree.items() if isinstance(value, dict)]
    return "\n".join("\n".join(_toml_lines(*each)) for each in (("", top), *sections, *tables)) + "\n"


def _toml_lines(title: str, keys: dict[str, Any]) -> Iterator[str]:
    yield from [title] if title else []
    yield from (f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None)


def _toml(value: Any) -> str:
    """TOML's notation of a value: that of JSON, tables aside."""
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item is not None}
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in given.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
