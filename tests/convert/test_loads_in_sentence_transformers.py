"""sentence-transformers loads the output of `--to torch` and `--to transformers`."""

from pathlib import Path

import numpy as np
import pytest
from marks import nightly
from paths import GOLDENS

from convert.__main__ import main
from stella_jax import Stella

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_buckets")]

# No white space at the ends: transformers 5 rebuilds XLM-R tokenizers without it, while tokenizer.json keeps it.
TEXTS = ["a", "What are some ways to reduce stress?", "Café naïve ÜBER straße — 北京", " ".join(["green tea"] * 40)]


@pytest.fixture
def sentence_transformer():
    from sentence_transformers import SentenceTransformer

    return lambda path: SentenceTransformer(str(path), device="cpu", local_files_only=True)


def models(*quick: str, others: tuple[str, ...]) -> pytest.MarkDecorator:
    """Each model is in one of the quick sets; with `make nightly`, in every test that it can be in."""
    return pytest.mark.parametrize("name", [*quick, *nightly(*others)])


@models("stella", "stella-qwen2", others=("stella-finetuned-st6", "gte-base-en", "arctic-m-v2", "gte-qwen2"))
def test_native_conversion_of_each_model(name: str, tmp_path: Path, sentence_transformer) -> None:
    assert main([str(GOLDENS / name), str(tmp_path / "flax")]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "native"), "--to", "transformers", "--verify"]) == 0
    theirs = sentence_transformer(tmp_path / "native")
    ours = Stella.from_pretrained(tmp_path / "flax")
    prompt = next(iter(ours.prompts.values()), None)
    np.testing.assert_allclose(
        theirs.encode(TEXTS, prompt=prompt), ours.encode(TEXTS, prompt=prompt), atol=1e-4, rtol=0
    )


@models("stella-finetuned-st6", "arctic-m-v2", "gte-qwen2", others=("stella",))
def test_encode_query_has_the_same_prompt(name: str, tmp_path: Path, sentence_transformer) -> None:
    assert main([str(GOLDENS / name), str(tmp_path / "native"), "--to", "transformers"]) == 0
    theirs, ours = sentence_transformer(tmp_path / "native"), Stella.from_pretrained(GOLDENS / name)
    assert ours.prompts.keys() <= theirs.prompts.keys()
    queries = ours.encode_query(TEXTS)
    assert not np.allclose(queries, ours.encode(TEXTS), atol=1e-2)
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, atol=1e-4, rtol=0)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), ours.encode_document(TEXTS), atol=1e-4, rtol=0)


@models("stella-qwen2", others=("gte-qwen2",))
def test_end_of_text_is_appended_in_both_libraries(name: str, tmp_path: Path, sentence_transformer) -> None:
    """Also for an empty text, a text that ends in it, and a truncated one; white space at the ends is tokenized."""
    assert main([str(GOLDENS / name), str(tmp_path / "native"), "--to", "transformers"]) == 0
    theirs, ours = sentence_transformer(tmp_path / "native"), Stella.from_pretrained(GOLDENS / name)
    texts = ["", "a<|endoftext|>", "  both ends \n", "café 1234 I'll\r\n", "green tea " * 100]
    for tokens, text in zip(ours.tokenize(texts), texts, strict=True):
        ids = theirs.preprocess([text])["input_ids"][0].tolist()
        assert ids == list(tokens.ids) and ids[-1] == ours.config.pad_token_id
    np.testing.assert_allclose(theirs.encode(texts), ours.encode(texts), atol=1e-4, rtol=0)


def test_round_trip_of_a_fine_tune_saved_by_sentence_transformers(tmp_path: Path, sentence_transformer) -> None:
    """The source has a config that it can load, so `--to torch` writes one, too."""
    assert main([str(GOLDENS / "stella"), str(tmp_path / "native"), "--to", "transformers"]) == 0
    sentence_transformer(tmp_path / "native").save_pretrained(str(tmp_path / "saved"))
    assert main([str(tmp_path / "saved"), str(tmp_path / "flax")]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "back"), "--to", "torch"]) == 0
    before, after = (sentence_transformer(tmp_path / name).encode(TEXTS) for name in ("saved", "back"))
    assert np.array_equal(before, after)
    np.testing.assert_allclose(Stella.from_pretrained(tmp_path / "flax").encode(TEXTS), after, atol=1e-4, rtol=0)
