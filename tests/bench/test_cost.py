from bench.checkpoint import STELLA
from bench.cost import attention_flops, batch_bytes, linear_flops, text_flops


def test_stella_costs_what_the_documents_say() -> None:
    assert linear_flops(STELLA) == 805_306_368
    assert attention_flops(STELLA, 1) == 98_304
    assert text_flops(STELLA, 512) == 512 * (805_306_368 + 512 * 98_304)


def test_attention_costs_as_much_as_the_rest_at_8192_tokens() -> None:
    assert attention_flops(STELLA, 8192) == linear_flops(STELLA)


def test_traffic_is_the_weights_once_and_the_states_of_each_layer() -> None:
    weights, states = 402_653_184, 2 * 24 * 1024 * 4
    assert batch_bytes(STELLA, [], "float32") == 4 * weights
    assert batch_bytes(STELLA, [3, 5], "bfloat16") == 2 * weights + 8 * states
