"""The card's sections on data sets: size, columns, statistics, samples and loss, as in sentence-transformers' cards."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stella_jax.errors import join_words
from stella_jax.tokenizer.tokenizer import Tokenizer
from train.data import Dataset
from train.loss_lookup import loss_arguments
from train.sections import LossSection

STATISTICS_ROWS = 1000
SAMPLES = 3
MAX_CHARACTERS = 300  # of a sample's text
TITLES = {"train": "Training", "eval": "Evaluation", "test": "Test"}

# sentence-transformers' names of the losses that it has.
CLASSES = {
    "triplet": "TripletLoss",
    "multiple_negatives_ranking": "MultipleNegativesRankingLoss",
    "gist_embed": "GISTEmbedLoss",
    "cosent": "CoSENTLoss",
    "margin_mse": "MarginMSELoss",
    "kl_distillation": "DistillKLDivLoss",
}


def loss_names(section: LossSection) -> list[str]:
    """Class names of the loss, outermost first: MatryoshkaLoss where it wraps another."""
    return [*(["MatryoshkaLoss"] if section.matryoshka_dims else []), CLASSES.get(section.name, section.name)]


def row_sections(data: Mapping[str, Sequence[Dataset]], section: LossSection, tokenizer: Tokenizer) -> Iterator[str]:
    """Markdown sections on the sets of each split."""
    for split, sets in data.items():
        yield f"### {TITLES[split]} dataset{'s' if len(sets) > 1 else ''}"
        for each in sets:
            yield from _set(each, split, section, tokenizer)


def _set(rows: Dataset, split: str, section: LossSection, tokenizer: Tokenizer) -> Iterator[str]:
    names = [f"<code>{name}</code>" for name in (*rows.texts, *rows.columns)]
    kinds, details = zip(*_statistics(rows, tokenizer), strict=True)
    yield f"#### {rows.name}"
    yield "\n".join(
        [
            f"* Size: {len(rows):,} {TITLES[split].lower()} samples",
            f"* Columns: {join_words(names)}",
            f"* SHA-256 of the rows: `{rows.sha256}`",
            f"* Approximate statistics based on the first {min(len(rows), STATISTICS_ROWS)} samples:",
        ]
    )
    yield table(("", *names), [("type", *kinds), ("details", *details)])
    yield "* Samples:"
    yield table(names, [_sample(rows, row) for row in range(min(SAMPLES, len(rows)))])
    parameters = loss_arguments(section) | (
        {"matryoshka_dims": list(section.matryoshka_dims), "matryoshka_weights": list(section.matryoshka_weights)}
        if section.matryoshka_dims
        else {}
    )
    yield f"* Loss: {' around '.join(f'<code>{name}</code>' for name in loss_names(section))} with these parameters:"
    yield f"```json\n{json.dumps(parameters, indent=4)}\n```"


def _statistics(rows: Dataset, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Type and details of each column, from its first STATISTICS_ROWS rows."""
    for texts in rows.texts.values():
        yield (
            "string",
            _spread([len(text.ids) for text in tokenizer.encode(list(texts[:STATISTICS_ROWS]))], "{:.0f} tokens"),
        )
    for values in rows.columns.values():
        first = values[:STATISTICS_ROWS]
        if first.ndim > 1:
            yield "list", _items({"size": f"{first.shape[1]} elements"})
        elif (first == np.round(first)).all() and len(np.unique(first)) <= 10:
            counts = sorted(Counter(first.tolist()).items())
            yield "int", _items({f"{value:g}": f"~{count / len(first):.2%}" for value, count in counts})
        else:
            yield "float", _spread(first, "{:.2f}")


def _spread(values: Sequence[float] | np.ndarray, form: str) -> str:
    mean = form.replace(".0f", ".2f").format(np.mean(values))
    return _items({"min": form.format(np.min(values)), "mean": mean, "max": form.format(np.max(values))})


def _items(items: Mapping[str, str]) -> str:
    return "<ul>" + "".join(f"<li>{name}: {value}</li>" for name, value in items.items()) + "</ul>"


def _sample(rows: Dataset, row: int) -> list[str]:
    texts = [_cut(texts[row]) for texts in rows.texts.values()]
    return [
        f"<code>{cell}</code>"
        for cell in (*texts, *(_cut(str(values[row].tolist())) for values in rows.columns.values()))
    ]


def _cut(text: str) -> str:
    text = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "<br>").replace("\r", "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
