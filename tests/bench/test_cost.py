from bench.checkpoint import STELLA
from bench.cost import batch_bytes


def test_traffic_counts_weights_and_states_of_each_layer() -> None:
    weights, states = 402_653_184, 2 * 24 * 1024 * 4
    assert batch_bytes(STELLA, [], "float32") == 4 * weights
    assert batch_bytes(STELLA, [3, 5], "bfloat16") == 2 * weights + 8 * states
