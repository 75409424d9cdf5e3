"""The card of a trained model, README.md: what it is, how it came about, what it scores, how to load it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stella_jax.errors import join_words
from stella_jax.heads import Head
from stella_jax.hub import REPO_ID
from stella_jax.layout import Layout
from stella_jax.side_files import ADAPTER
from train.curves import FILE as CURVES
from train.data import Dataset
from train.identity import versions
from train.loss_lookup import loss_arguments
from train.metrics import Line, Metrics
from train.recipe import Recipe, to_toml

MOST_LINES = 50  # of the log
LOGGED = ("loss", "cosine_accuracy", "cosine_mrr@10")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a trained model comes from.

    Attributes:
      identity: of the run, as `identity.identity` gives it.
      step: after how many steps.
    """

    recipe: Recipe
    identity: Mapping[str, Any]
    data: Mapping[str, Sequence[Dataset]]
    step: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"step": self.step, "identity": dict(self.identity), "recipe": self.recipe.as_dict()}


def card(
    origin: Origin, metrics: Metrics, layout: Layout, head: Head | None, stale_heads: Sequence[str], has_curves: bool
) -> str:
    """The card as Markdown.

    Args:
      layout: of the base.
      head: the one that was trained through.
      stale_heads: folders of those that belong to the encoder as it was before.
    """
    recipe = origin.recipe
    dim = head.dim if head else layout.config.hidden_size
    sections = [
        _front_matter(recipe),
        f"# {Path(recipe.model).name}, trained further",
        f"{recipe.model}{_revision(recipe)}, trained for {origin.step} steps with {_loss(recipe)}. It maps a text to "
        f"{dim} numbers{' of unit length' if layout.normalize else ''}; {layout.similarity} is its similarity.",
        "## Loading it",
        _loading(recipe),
        *_heads(head, stale_heads),
        *_adapter(recipe),
        "## Scores",
        *_scores(origin, metrics),
        "## Training",
        _data(origin),
        "```toml\n" + to_toml(recipe) + "```",
        *([f"![loss and scores over the steps]({CURVES})"] if has_curves else []),
        *_log(metrics, recipe.loop.best),
        "## Where it comes from",
        _sources(origin),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(recipe: Recipe) -> str:
    lines = [
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, stella-jax]",
    ]
    if REPO_ID.fullmatch(recipe.model) and not Path(recipe.model).exists():
        lines.append(f"base_model: {recipe.model}")
    return "\n".join(["---", *lines, "---"])


def _revision(recipe: Recipe) -> str:
    return f" (revision {recipe.revision})" if recipe.revision else ""


def _loss(recipe: Recipe) -> str:
    section = recipe.loss
    given = loss_arguments(section)
    if section.matryoshka_dims:
        given = given | {"matryoshka_dims": join_words(section.matryoshka_dims)}
    words = ", ".join(f"{key} {_plain(value)}" for key, value in given.items())
    return f"the loss {section.name}{f' ({words})' if words else ''}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loading(recipe: Recipe) -> str:
    prompts = ", ".join(f"{column}: {json.dumps(prompt)}" for column, prompt in recipe.data.prompts.items())
    note = f"\n\nPrompts in training, by their name or text: {prompts}." if prompts else ""
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
        yield f"`{head.folder}` is the head that was trained, and the one that `modules.json` names."
    if stale_heads:
        verb = "belong" if len(stale_heads) > 1 else "belongs"
        names = join_words(f"`{folder}`" for folder in stale_heads)
        yield f"{names} {verb} to the encoder as it was before: not trained with it, and not to be used with it."


def _adapter(recipe: Recipe) -> Iterator[str]:
    if (lora := recipe.lora) is None:
        return
    targets = lora.targets if isinstance(lora.targets, str) else join_words(lora.targets)
    what = f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {targets}"
    head = f" The head, which was trained beside them, is not in `{ADAPTER}/`." if lora.head else ""
    yield (
        f"It was trained with LoRA ({what}), and the adapters are merged into these weights. `{ADAPTER}/` holds them "
        f'as peft reads them: `PeftModel.from_pretrained(model, "path/to/this/directory/{ADAPTER}")`, where `model` is '
        f"the encoder of the base as transformers' own GteModel.{head}"
    )


def _scores(origin: Origin, metrics: Metrics) -> Iterator[str]:
    """A table of each split that was evaluated."""
    held_out = [split for split in ("eval", "test") if metrics.evaluations(split)]
    for split in held_out:
        before, after = metrics.evaluation(split, 0), metrics.evaluation(split, origin.step)
        if before and after:
            rows = [(name, _number(before[name]), _number(after[name])) for name in after]
            title = f"{split} ({sum(map(len, origin.data[split]))} rows)" if split in origin.data else split
            yield _table((title, "before", "after"), rows)
    if not held_out:
        yield "Nothing was held out, so there are none."


def _data(origin: Origin) -> str:
    rows = [
        (split, each.name, str(len(each)), ", ".join([*each.texts, *each.columns]), f"`{each.sha256[:12]}`")
        for split, sets in origin.data.items()
        for each in sets
    ]
    return _table(("split", "set", "rows", "columns", "sha256 of the rows"), rows)


def _log(metrics: Metrics, best: str | None) -> Iterator[str]:
    """A table with a line for each evaluation, or where there is none, some of the steps."""
    evaluations = metrics.evaluations("eval")
    wanted: list[str] = [*LOGGED, *([best] if best and best not in LOGGED else [])]
    names = [name for name in wanted if any(name in line["eval"] for line in evaluations)]
    rows = list(_log_rows(metrics.steps(), evaluations, names))
    every = -(-len(rows) // MOST_LINES) or 1
    rows = [row for i, row in enumerate(rows, 1) if i % every == 0 or i == len(rows)]
    if rows:
        yield _table(("epoch", "step", "training loss", *(f"eval {name}" for name in names)), rows)


def _log_rows(steps: Sequence[Line], evaluations: Sequence[Line], names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if not evaluations:
        yield from ((f"{line['epoch']:.2f}", str(line["step"]), _number(line["loss"])) for line in steps)
    last = 0
    for line in evaluations:
        losses = [step["loss"] for step in steps if last < step["step"] <= line["step"] and step["loss"] is not None]
        last = line["step"]
        loss = _number(fmean(losses)) if losses else "-"
        yield f"{line['epoch']:.2f}", str(last), loss, *(_number(line["eval"].get(name)) for name in names)


def _sources(origin: Origin) -> str:
    model = origin.identity["model"]
    hashes = {"encoder": model["encoder"]} | {f"head {dim}": hash for dim, hash in model["heads"].items()}
    rows = [(f"sha256 of the base's {part}", f"`{value}`") for part, value in hashes.items()]
    return _table(("", ""), [*rows, *versions().items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
