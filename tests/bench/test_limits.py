import pytest

from bench.checkpoint import SMALL, STELLA
from bench.limits import Limits, bandwidths, best, matmul_rates, roofline


def test_products_bound_long_texts_and_traffic_a_short_one() -> None:
    machine = Limits("float32", matmul=1e12, bandwidth=1e11)
    assert machine.seconds(STELLA, [512] * 100) == machine.compute_seconds(STELLA, [512] * 100)
    assert machine.seconds(STELLA, [8]) == machine.traffic_seconds(STELLA, [8]) == pytest.approx(0.0161, rel=0.01)


def test_a_roofline_gives_the_smaller_rate_of_a_batch() -> None:
    machine = Limits("bfloat16", matmul=790e12, bandwidth=1e20)
    [[dtype, batch, gflop, compute, traffic, both]] = roofline(STELLA, machine, [512])
    assert (dtype, batch, gflop) == ("bfloat16", "1 x 512", "0.8556")
    assert both == compute == pytest.approx(923e3, rel=1e-3)
    assert isinstance(traffic, float) and traffic > 1e9


def test_rates_are_measured_for_each_library_and_count(monkeypatch) -> None:
    monkeypatch.setattr("bench.limits.TOKENS", {"cpu": (8, 16)})
    monkeypatch.setattr("bench.limits.find_spec", lambda name: None)
    rates = list(matmul_rates(SMALL, "float32"))
    assert [rate[:2] for rate in rates] == [("jax", 8), ("jax", 16)]
    assert all(rate > 0 for *_, rate in rates)


def test_memory_is_written_and_read(monkeypatch) -> None:
    monkeypatch.setattr("bench.limits.STREAM_BYTES", {"cpu": 2**12})
    assert set(bandwidths()) == {"triad", "sum"}


def test_the_first_run_does_not_count() -> None:
    calls: list[None] = []
    assert best(lambda: calls.append(None), 3) > 0
    assert len(calls) == 4
