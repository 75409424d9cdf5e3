"""Rows for the embedded checkpoint to learn from, out of a dictionary's pairs of words and glosses."""

import json
import random
from collections.abc import Sequence, Set
from pathlib import Path

from tools.tiny.untrained import SEED
from train.data import Dataset

QUESTIONS = ("{}", "What is {}?", "Define {}.", "meaning of {}", "Can you tell me what {} means?")


def write_pairs(pairs: Dataset, file: Path) -> None:
    """The pairs, and what follows from them: a word with the gloss of its kind, and the two halves of a gloss.

    Anchors that are no glosses are words; a gloss that is an anchor has that of its kind as positive. A half has every
    word of the gloss that a coin gives it: words that stand together are of one topic.
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
    """Questions about words, each with the gloss of its word and a wrong one, from pairs and from ready triplets.

    The wrong gloss is one of the same kind, or any where there is none. A third of the questions carry a prompt.

    Args:
      held_out: texts that no row may have.
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
    """All glosses in a fixed order, and the gloss of its kind of each that has one."""
    glosses = dict.fromkeys(sorted(pairs.texts["positive"]))
    return glosses, {a: b for a, b in zip(pairs.texts["anchor"], pairs.texts["positive"], strict=True) if a in glosses}
