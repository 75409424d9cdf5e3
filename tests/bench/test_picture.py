import pytest

from bench.picture import draw, rates_of
from bench.report import table

COLUMNS = ["dtype", "workload", "system", "tok/s"]
ROWS = [
    ["float32", "16 x 128 tokens", "stella-jax", 349.0],
    ["float32", "4 x 512 tokens", "stella-jax", 381.0],
    ["float32", "16 x 128 tokens", "roofline", 900.0],
    ["float32", "mixed, 96 texts", "stella-jax", 295.0],
    ["bfloat16", "16 x 128 tokens", "stella-jax", 107.0],
]
TEXT = f"## limits\n\n{table(['a'], [[1]])}\n\n## encode: all\n\n{table(COLUMNS, ROWS)}\n"


def test_rates_for_one_length_and_dtype() -> None:
    rates = {"stella-jax": {128: 349.0, 512: 381.0}, "roofline": {128: 900.0}}
    assert rates_of(TEXT) == (rates, "float32")
    assert rates_of(TEXT, "bfloat16") == ({"stella-jax": {128: 107.0}}, "bfloat16")


@pytest.mark.parametrize(
    "text", ["", "## encode: old\n\n| workload |\n| --- |\n| 4 x 128 tokens |\n"], ids=["empty", "old"]
)
def test_file_without_a_table(text: str, refused) -> None:
    with refused("encode", error=ValueError):
        rates_of(text)


def test_picture_is_small_and_reproducible(tmp_path) -> None:
    rates, _ = rates_of(TEXT)
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        draw(rates, "Tokens per second", file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert b"stella-jax" in first and len(first) < 60_000
