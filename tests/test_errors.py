"""Errors are printable sentences, whatever they quote."""

import pytest

from stella_jax.errors import MAX_SENTENCE, StellaError, join_words, short_repr


@pytest.mark.parametrize("quoted", ["x" * 10**6, "\x1b" * 10**6, "\U0001fa00" * 10**6, "a\r" * 10**6], ids=range(4))
def test_long_lines_are_cut(quoted):
    message = str(StellaError(f"model.safetensors: {quoted} is unknown; download it again."))
    assert len(message) <= MAX_SENTENCE
    assert message.startswith("model.safetensors: ") and message.endswith("download it again.")
    assert message.isprintable()


def test_long_lists_are_cut():
    assert len(str(StellaError("\n  ".join(["title:", *["fault"] * 10**5]))).splitlines()) <= 50


def test_many_names_are_counted():
    assert join_words("abc") == "a, b and c"
    assert join_words(range(10**5)).endswith(", 19 and 99980 more")


@pytest.mark.parametrize("value", [10**5000, [10**5000], "x" * 10**6], ids=range(3))
def test_any_value_has_a_short_repr(value):
    assert len(short_repr(value)) < 110
