"""The model card of a trained model, README.md."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from stella_jax.checkpoint.hub import REPO_ID
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.side_files import ADAPTER
from stella_jax.errors import join_words
from stella_jax.models.heads import Head
from stella_jax.tokenizer.tokenizer import Tokenizer
from train.card_datasets import loss_names, row_sections, table
from train.curves import FILE as CURVES
from train.data import Dataset
from train.identity import versions
from train.loss_lookup import loss_arguments
from train.metrics import Line, MetricsLog
from train.recipe import Recipe
from train.sections import SPLITS

MAX_LOG_ROWS = 50  # for steps, and for evaluations
TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "stella-jax")
LOGGED = ("loss", "cosine_accuracy", "cosine_mrr@10")


@dataclass(frozen=True, slots=True)
class Origin:
    """Provenance of a trained model.

    Attributes:
      identity: the run's, from `identity.identity`.
      data: the sets of each split.
      step: number of steps trained.
    """

    recipe: Recipe
    identity: Mapping[str, Any]
    data: Mapping[str, Sequence[Dataset]]
    step: int

    def as_dict(self) -> dict[str, Any]:
        """Step, identity and recipe as JSON values."""
        return {"step": self.step, "identity": dict(self.identity), "recipe": self.recipe.as_dict()}


def card(
    origin: Origin,
    metrics: MetricsLog,
    spec: ModelSpec,
    head: Head | None,
    stale_heads: Sequence[str],
    has_curves: bool,
    tokenizer: Tokenizer,
) -> str:
    """The card as Markdown.

    Args:
      spec: the base checkpoint's.
      head: the trained head, if any.
      stale_heads: folders of heads that belong to the encoder before training.
      has_curves: whether there is a plot to show.
      tokenizer: as in training.
    """
    recipe = origin.recipe
    dim = head.dim if head else spec.config.hidden_size
    sections = [
        _front_matter(origin),
        f"# {Path(recipe.model).name}, fine-tuned",
        f"{recipe.model}{_revision(recipe)}, fine-tuned for {origin.step} steps with {_loss(recipe)}. It maps a text "
        f"to a {'unit ' if spec.normalize else ''}vector of {dim} dimensions; its similarity function is "
        f"{spec.similarity}.",
        "## Model description",
        _description(origin, spec, head, tokenizer.max_length),
        "## Usage",
        _loading(recipe),
        *_heads(head, stale_heads),
        *_adapter(recipe),
        "## Evaluation",
        *_scores(origin, metrics),
        "## Training details",
        *row_sections(origin.data, recipe.loss, tokenizer),
        "### Training hyperparameters",
        *_hyperparameters(recipe),
        "### Training logs",
        *([f"![loss and scores over the steps]({CURVES})"] if has_curves else []),
        *_log(metrics, recipe.loop.best),
        "## Provenance",
        _sources(origin),
        "### Framework versions",
        table(("", ""), list(versions().items())),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(origin: Origin) -> str:
    recipe = origin.recipe
    size = f"dataset_size:{sum(map(len, origin.data['train']))}"
    losses = [f"loss:{name}" for name in loss_names(recipe.loss)]
    lines = [
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        f"tags: {json.dumps([*TAGS, size, *losses])}",
    ]
    if REPO_ID.fullmatch(recipe.model) and not Path(recipe.model).exists():
        lines.append(f"base_model: {recipe.model}")
    return "\n".join(["---", *lines, "---"])


def _description(origin: Origin, spec: ModelSpec, head: Head | None, max_length: int) -> str:
    config, recipe = spec.config, origin.recipe
    modules = [
        f"{config.num_hidden_layers} layers of {config.hidden_size} dimensions",
        f"{spec.pooling} pooling",
        *([f"a Dense head to {head.dim} dimensions ({head.activation})"] if head else []),
        *(["normalization to unit length"] if spec.normalize else []),
    ]
    return "\n".join(
        [
            "- **Model type:** Sentence Transformer",
            f"- **Base model:** {recipe.model}{_revision(recipe)}",
            f"- **Maximum sequence length:** {max_length} tokens",
            f"- **Output dimensionality:** {head.dim if head else config.hidden_size} dimensions",
            f"- **Similarity function:** {spec.similarity}",
            f"- **Training datasets:** {join_words(each.name for each in origin.data['train'])}",
            f"- **Architecture:** {join_words(modules)}",
        ]
    )


def _revision(recipe: Recipe) -> str:
    return f" (revision {recipe.revision})" if recipe.revision else ""


def _loss(recipe: Recipe) -> str:
    section = recipe.loss
    given = loss_arguments(section)
    if section.matryoshka_dims:
        given = given | {"matryoshka_dims": section.matryoshka_dims}
    words = ", ".join(f"{key} {_format(value)}" for key, value in given.items() if value is not None)
    return f"the loss {section.name}{f' ({words})' if words else ''}"


def _format(value: Any) -> str:
    if isinstance(value, list | tuple):
        return join_words(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loading(recipe: Recipe) -> str:
    prompts = ", ".join(f"{column}: {json.dumps(prompt)}" for column, prompt in recipe.data.prompts.items())
    note = f"\n\nPrompts used in training (name or text): {prompts}." if prompts else ""
    return f"""In JAX:

```python
from stella_jax import Stella

model = Stella.from_pretrained("path/to/this/directory")
embeddings = model.encode(["a text", "another"])
```

In PyTorch:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
embeddings = model.encode(["a text", "another"])
```{note}"""


def _heads(head: Head | None, stale_heads: Sequence[str]) -> Iterator[str]:
    if head:
        yield f"`{head.folder}` is the trained head, the one in `modules.json`."
    if stale_heads:
        verb, them = ("belong", "them") if len(stale_heads) > 1 else ("belongs", "it")
        names = join_words(f"`{folder}`" for folder in stale_heads)
        yield f"{names} {verb} to the encoder before training; do not use {them} with this one."


def _adapter(recipe: Recipe) -> Iterator[str]:
    if (lora := recipe.lora) is None:
        return
    targets = lora.targets if isinstance(lora.targets, str) else join_words(lora.targets)
    what = f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {targets}"
    head = f" The head was trained too, and is not in `{ADAPTER}/`." if lora.head else ""
    yield (
        f"Trained with LoRA ({what}); the adapters are merged into these weights. `{ADAPTER}/` has them in peft's "
        f'format: `PeftModel.from_pretrained(model, "path/to/this/directory/{ADAPTER}")`, where `model` is the base '
        f"model's encoder, loaded with transformers.{head}"
    )


def _scores(origin: Origin, metrics: MetricsLog) -> Iterator[str]:
    """A table for each split that was evaluated."""
    held_out = [split for split in ("eval", "test") if metrics.evaluations(split)]
    for split in held_out:
        before, after = metrics.evaluation(split, 0), metrics.evaluation(split, origin.step)
        if before and after:
            rows = [(name, _number(before[name]), _number(after[name])) for name in after]
            title = f"{split} ({sum(map(len, origin.data[split]))} rows)" if split in origin.data else split
            yield table((title, "before", "after"), rows)
    if not held_out:
        yield "Not evaluated: the recipe has no eval or test data."


def _hyperparameters(recipe: Recipe) -> Iterator[str]:
    sections: dict[str, Any] = {"data": recipe.data, "loss": recipe.loss, "optimizer": recipe.optimizer}
    sections |= {"loop": recipe.loop} | ({"lora": recipe.lora} if recipe.lora else {})
    changed = [
        f"- `{name}.{each.name}`: {json.dumps(getattr(section, each.name))}"
        for name, section in sections.items()
        for each in fields(section)
        if each.name not in (*SPLITS, "sets") and getattr(section, each.name) != _default(each)
    ]
    yield "#### Non-default hyperparameters"
    yield "\n".join([*changed, f"- `seed`: {recipe.seed}"])
    yield "#### All hyperparameters"
    yield "```toml\n" + recipe.to_toml() + "```"


def _default(each: Field) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _log(metrics: MetricsLog, best: str | None) -> Iterator[str]:
    """A table of at most MAX_LOG_ROWS steps and as many evaluations."""
    evaluations = {line["step"]: line for line in metrics.evaluations("eval")}
    wanted: list[str] = [*LOGGED, *([best] if best and best not in LOGGED else [])]
    names = [name for name in wanted if any(name in line["eval"] for line in evaluations.values())]
    rows = list(_log_rows(metrics.steps(), evaluations, names))
    if rows:
        yield table(("Epoch", "Step", "Training Loss", *(f"eval {name}" for name in names)), rows)


def _log_rows(
    steps: Sequence[Line], evaluations: Mapping[int, Line], names: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Rows of the table; the training loss is the mean since the row before."""
    shown = {*_spaced([line["step"] for line in steps]), *_spaced(list(evaluations))}
    by_step = {line["step"]: line for line in steps}
    losses: list[float] = []
    for step in sorted(by_step.keys() | evaluations.keys()):
        losses += [by_step[step]["loss"]] if step in by_step and by_step[step]["loss"] is not None else []
        if step not in shown:
            continue
        found = evaluations[step]["eval"] if step in evaluations else {}
        epoch = (evaluations.get(step) or by_step[step])["epoch"]
        yield (
            f"{epoch:.4g}",
            str(step),
            _number(fmean(losses) if losses else None),
            *(_number(found.get(name)) for name in names),
        )
        losses = []


def _spaced(steps: Sequence[int]) -> list[int]:
    """At most MAX_LOG_ROWS of the steps, evenly spaced, with the last."""
    every = -(-len(steps) // MAX_LOG_ROWS) or 1
    return [step for i, step in enumerate(steps, 1) if i % every == 0 or i == len(steps)]


def _sources(origin: Origin) -> str:
    model = origin.identity["model"]
    hashes = {"encoder": model["encoder"]} | {f"head {dim}": hash for dim, hash in model["heads"].items()}
    rows = [(f"sha256 of the base's {part}", f"`{value}`") for part, value in hashes.items()]
    return table(("", ""), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
