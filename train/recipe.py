"""Recipe of a training run: all its settings, read from TOML and checked before anything is loaded.

Each class is a section, each attribute a key with its default.
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
from stella_jax.storage.location import open_regular
from stella_jax.weight_map import ALL_LINEAR
from train.fields import every, number, one_of, optional_one_of, override, section

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

# Columns that a set may rename, besides those of `data.columns`.
RENAMED = re.compile("anchor|positive|negative(_([2-9]|[1-9][0-9]+))?|score|label|teacher|id")

Paths = str | tuple[str, ...]

MAX_FILE_SIZE = 2**15  # tomllib's time grows with the square of the size: seconds for this one

# Bounds of the plan that is made before the first step: epochs, steps, and rows of a step.
MOST_EPOCHS = 100_000
MOST_STEPS = 10_000_000
MOST_ROWS = 2**20


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
      prompts: column -> its prompt: the name of one of the checkpoint's prompts, or a text that contains a space. The
        one of `negative` is for all negatives.
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


@dataclass(frozen=True, slots=True)
class LossSection:
    """The loss. Keys that are None take the loss function's own default, see `train.losses`.

    Attributes:
      name: a built-in loss, one of `LOSS_KEYS`; or "my_module:my_loss", your own function as described in
        `train.losses`, from a module in the working directory or an installed one.
      args: keyword arguments of your own function.
      guide: the frozen guide of gist_embed, as in `Stella.from_pretrained`; it must have the model's tokenizer.
      mini_batch: rows that pass the encoder at a time; None is the whole batch. The gradient stays the same; a loss
        that compares rows uses GradCache.
      matryoshka_dims: sum the loss over prefixes of the embedding with these lengths; empty is the whole embedding
        only. stella_distillation averages its last two terms over them.
      matryoshka_weights: weight of each prefix's loss; empty is 1 each.
      distance: of triplet.
      margin: of triplet, gist_embed, stella_distillation.
      margin_strategy: of gist_embed.
      contrast_anchors: of gist_embed.
      contrast_positives: of gist_embed.
      scale: of multiple_negatives_ranking and cosent.
      symmetric: of multiple_negatives_ranking: also rank anchors for each positive.
      similarity: of margin_mse and kl_distillation.
      temperature: of gist_embed and kl_distillation.
      cosine_weight: weight of the term `cosine` of stella_distillation.
      similarity_weight: weight of its term `similarity`.
      triplet_weight: weight of its term `triplet`.
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
        """The given keyword arguments of the loss."""
        given = {key: getattr(self, key) for key in LOSS_KEYS.get(self.name, ())}
        return {key: value for key, value in given.items() if value is not None} | self.args


@dataclass(frozen=True, slots=True)
class OptimizerSection:
    """The optimizer, its schedule, and which parameters it trains.

    Attributes:
      name: an optimizer of optax or optax.contrib, such as adamw, lion, adafactor, sgd or muon.
      args: further arguments of optax's function.
      learning_rate: peak of the schedule.
      schedule: decay after the warm-up: cosine or linear to 0 at the end, or constant.
      warmup_ratio: share of the steps with linear warm-up from 0.
      weight_decay: of matrices; biases and norms have none.
      max_grad_norm: clip the global norm of the gradient to this; 0 switches it off.
      train_only: patterns of the parameters to train, such as "head/*" or "encoder/layers/23/*"; others are frozen.
      freeze: patterns of parameters to freeze.
      learning_rates: pattern -> the peak learning rate of the parameters that it matches.
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
    """The training loop: length, batch size, precision, devices, evaluations and checkpoints.

    Attributes:
      epochs: number of passes through the rows.
      max_steps: number of optimizer steps, overrides `epochs`.
      batch_size: rows of an optimizer step, over all devices and accumulation steps.
      dtype: compute dtype; parameters and optimizer moments are float32.
      dropout: false switches off the checkpoint's hidden_dropout_prob.
      eval_every: "epoch", or a number of steps.
      save_every: "epoch", or a number of steps.
      best: the score of "eval" by which evaluations are compared, such as "loss" or "name/cosine_ndcg@10" of an
        evaluator; None is cosine_accuracy of rows with negatives, cosine_mrr@10 of others, and without such rows the
        main score of the first evaluator.
      log: also write metrics to "tensorboard" (events in `output`) or "wandb".
      early_stop: stop after so many evaluations without a better score.
      keep: number of newest checkpoints to keep, besides the best.
      gradient_accumulation_steps: parts that a batch is split into, one in memory at a time.
      export: export the weights of the last step, or of the best evaluation.
      remat: recompute each layer in the backward pass, which saves memory and costs time.
      mesh: devices of all hosts together, such as "data=4,model=2"; None is one device.
      fsdp: also shard parameters and optimizer moments over the mesh's `data` axis.
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
    """LoRA: trains low-rank adapters of the layers only.

    Attributes:
      rank: of an adapter's matrices.
      alpha: an adapter's output is scaled by alpha / rank.
      dropout: rate of dropout on an adapter's input, independent of the encoder's.
      targets: linear layers with an adapter, such as ["q_proj", "v_proj"], or "all-linear".
      head: also train the head.
    """

    rank: int = number(8, least=1, most=8192)
    alpha: float = number(16.0, above=0)
    dropout: float = number(0.0, least=0, most=0.99)
    targets: str | tuple[str, ...] = ALL_LINEAR
    head: bool = False


@dataclass(frozen=True, slots=True)
class NewHeadSection:
    """A new Dense head, initialized at random with the recipe's seed.

    Attributes:
      dim: embedding dimension.
      pooling: mean or cls; None is the checkpoint's.
      bias: whether it has a bias.
      activation: identity or tanh.
    """

    dim: int = number(dataclasses.MISSING, least=1, most=1_000_000)
    pooling: str | None = field(default=None, metadata={"choices": ("mean", "cls")})
    bias: bool = True
    activation: str = one_of("identity", "tanh")


@dataclass(frozen=True, slots=True)
class EvaluatorSection:
    """An evaluator besides that of the split's rows; its scores are named `name/score`.

    Attributes:
      name: prefix of its scores; unique, and different from the names of sets.
      kind: retrieval, pairs (of texts with a score), reranking or triplets.
      path: for retrieval, a directory in BEIR's layout: `queries` and `corpus` (`_id`, `text`, optional `title`) as
        .jsonl, .csv or .parquet, and `qrels`. For others a file: pairs with columns `sentence1`, `sentence2`, `score`;
        reranking with `query`, `positive`, `negative`, the latter two lists or single texts; triplets with `anchor`,
        `positive`, `negative`.
      split: run it with the evaluations of "eval", or of "test" (before and after training).
      qrels: of retrieval, file in the directory with tab-separated query id, corpus id and score; relevant above 0.
      measure: similarity of retrieval and reranking; pairs and triplets are scored with each.
      k: cutoffs of retrieval and reranking; empty is sentence-transformers' default.
      prompts: of `query` and `document`, as in `data.prompts`; the default is that of anchor and positive there. Pairs
        use that of `query` for both texts, by default none.
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
        """All keys with their values, as JSON values."""
        return _as_json(dataclasses.asdict(self))


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
        raise StellaError(f"{quoted(path)}: not valid TOML: {first_line(error)[:200]}.") from error
    for text in overrides:
        override(tree, text)
    return recipe_of(tree, quoted(path))


def recipe_of(tree: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Makes a recipe from a parsed file; `where` names it in errors, which are those of `read_recipe`."""
    try:
        recipe: Recipe = section(Recipe, tree, "", where)
        json.dumps(recipe.as_dict())
    except RecursionError as error:
        raise StellaError(f"{where}: a value is nested too deeply; write it in fewer levels.") from error
    for wrong in _conflicts(recipe):
        raise StellaError(f"{where}: {wrong}.")
    return recipe


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """Conflicts between keys that are valid by themselves, a sentence each."""
    loss, loop = recipe.loss, recipe.loop
    yield from _loss_conflicts(loss)
    yield from _conflicts_of_sets(recipe.data)
    for name in set(recipe.data.columns).intersection((*COLUMNS, "weights", "guide")):
        what = "a column of texts" if name in COLUMNS else "a reserved name"
        yield f"data.columns: {name!r} is {what}; leave it out"
    if recipe.new_head and recipe.dim is not None:
        yield "dim and new_head both choose the head; set one of them"
    if recipe.new_head and recipe.lora and not recipe.lora.head:
        yield "new_head is initialized at random, and [lora] does not train it; set lora.head = true"
    evaluated = recipe.data.sets_of("eval") or any(each.split == "eval" for each in recipe.evaluators)
    if not evaluated and (loop.early_stop or loop.best or loop.export == "best"):
        key = "early_stop" if loop.early_stop else "best" if loop.best else "export = 'best'"
        yield f"loop.{key} needs evaluations; name a file in data.eval or an evaluator"
    names = [each.name for each in recipe.evaluators]
    taken = {each.title for split in SPLITS for each in recipe.data.sets_of(split)}
    for name in names:
        if names.count(name) > 1 or "/" in name or name in taken:
            yield f"evaluators: the name {short_repr(name)} is taken, or contains '/'; choose another name"
    if loop.gradient_accumulation_steps > loop.batch_size:
        yield (
            f"loop.gradient_accumulation_steps = {loop.gradient_accumulation_steps} is more than loop.batch_size = "
            f"{loop.batch_size}; lower it"
        )
    if loop.gradient_accumulation_steps > 1 and loss.mini_batch:
        yield "loss.mini_batch and loop.gradient_accumulation_steps both split the batch; use one of them"


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
            yield f"data.{split} and data.sets both have rows of the split {split}; use one of them"
        if twice is not None:
            yield f"data.sets: two sets of the split {split} are called {twice!r}; give each a name"
    if not sum(each.weight for each in data.sets_of("train")):
        yield "data.sets: all weights of the train split are 0; give a set a weight above 0"
    for i, each in enumerate(data.sets):
        unknown = [name for name in each.columns if not RENAMED.fullmatch(name) and name not in data.columns]
        if unknown:
            yield (
                f"data.sets[{i}].columns: unknown key {short_repr(unknown[0])}; known keys: anchor, positive, "
                "negative, negative_2 and so on, score, label, teacher, id and those of data.columns"
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
    """The recipe as TOML, with every key that has a value."""
    tree = recipe.as_dict()
    tables = [(f"[[{name}]]", table) for name in ("evaluators",) for table in tree.pop(name)]
    top = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    sections = [(f"[{name}]", value) for name, value in tree.items() if isinstance(value, dict)]
    return "\n".join("\n".join(_toml_lines(*each)) for each in (("", top), *sections, *tables)) + "\n"


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


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
