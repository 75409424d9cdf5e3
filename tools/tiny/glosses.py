"""Training rows of the included checkpoint, made from a dictionary's pairs of words and glosses."""

import json
import random
from collections.abc import Sequence, Set
from pathlib import Path

from tools.tiny.untrained import SEED
from train.data import Dataset

QUESTIONS = ("{}", "What is {}?", "Define {}.", "meaning of {}", "Can you tell me what {} means?")


def write_pairs(pairs: Dataset, file: Path) -> None:
    """Writes the pairs, pairs of a word and its hypernym's gloss, and pairs of two random halves of a gloss.

    Anchors are words or glosses; an anchor that is a gloss has its hypernym's gloss as the positive. Each word of a
    gloss goes to one of its halves at random, as words of the same gloss share a topic.
    """
    rng = random.Random(SEED)
    glosses, kind = _glosses(pairs)
    rows = list(zip(pairs.texts["anchor"], pairs.texts["positive"], strict=True))
    rows += [(word, kind[gloss]) for word, gloss in rows if word not in glosses and gloss in kind]
    for words in map(str.split, glosses):
        halves: tuple[list[str], list[str]] = [], []
        for word in words:
            halves[rng.random() < 0.5].append(word)
        rows.append((" ".join(halves[0]), " ".join(halves[1])))
    with file.open("w", encoding="utf-8") as lines:
        for anchor, positive in rows:
            if anchor and positive and anchor != positive:
                lines.write(json.dumps({"anchor": anchor, "positive": positive}) + "\n")


def write_questions(pairs: Dataset, triplets: Dataset, held_out: Set[str], prompts: Sequence[str], file: Path) -> None:
    """Writes triplets of a question about a word, its gloss and a wrong gloss, and those of `triplets`.

    The wrong gloss has the same hypernym if there is one, else it is any other. A third of the questions has a prompt.

    Args:
      pairs: words and their glosses.
      triplets: rows to add, except those with a held-out text.
      held_out: texts of the evaluation splits.
      prompts: the checkpoint's prompts.
      file: the file to write.
    """
    rng = random.Random(SEED)
    glosses, kind = _glosses(pairs)
    of_kind: dict[str, list[str]] = {}
    for gloss in glosses:
        of_kind.setdefault(kind.get(gloss, ""), []).append(gloss)
    any_gloss = list(glosses)
    rows = [texts for texts in zip(*triplets.texts.values(), strict=True) if not held_out & set(texts)]
    for word, gloss in zip(pairs.texts["anchor"], pairs.texts["positive"], strict=True):
        if word in glosses:
            continue
        others = of_kind[kind[gloss]] if gloss in kind else []
        wrong = gloss
        while wrong == gloss:
            wrong = rng.choice(others if len(others) > 1 else any_gloss)
        rows.append((rng.choice(QUESTIONS).format(word), gloss, wrong))
    with file.open("w", encoding="utf-8") as lines:
        for question, gloss, wrong in rows:
            prompt = rng.choice([*prompts, *[""] * 2 * len(prompts)])
            lines.write(json.dumps({"anchor": prompt + question, "positive": gloss, "negative": wrong}) + "\n")


def _glosses(pairs: Dataset) -> tuple[dict[str, None], dict[str, str]]:
    """All glosses in a fixed order, and gloss -> its hypernym's gloss."""
    glosses = dict.fromkeys(sorted(pairs.texts["positive"]))
    return glosses, {a: b for a, b in zip(pairs.texts["anchor"], pairs.texts["positive"], strict=True) if a in glosses}
