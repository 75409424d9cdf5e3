from bench.checkpoint import STELLA
from stella_jax.flops import attention_flops, linear_flops, text_flops


def test_stella_costs_what_the_documents_say() -> None:
    assert linear_flops(STELLA) == 805_306_368
    assert attention_flops(STELLA, 1) == 98_304
    assert text_flops(STELLA, 512) == 512 * (805_306_368 + 512 * 98_304)


def test_attention_costs_as_much_as_the_rest_at_8192_tokens() -> None:
    assert attention_flops(STELLA, 8192) == linear_flops(STELLA)
