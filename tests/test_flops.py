from bench.checkpoint import QWEN2, STELLA
from stella_jax.flops import attention_flops, linear_flops, text_flops


def test_flops_of_stella() -> None:
    assert linear_flops(STELLA) == 805_306_368
    assert attention_flops(STELLA, 1) == 98_304
    assert text_flops(STELLA, 512) == 512 * (805_306_368 + 512 * 98_304)


def test_attention_flops_at_8192_tokens() -> None:
    assert attention_flops(STELLA, 8192) == linear_flops(STELLA)


def test_flops_of_the_1_5b() -> None:
    """The products of two key heads, and the scores of all twelve query heads."""
    assert linear_flops(QWEN2) == 2 * 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960) == 2_620_391_424
    assert attention_flops(QWEN2, 1) == 172_032
