import pytest

from bench.checkpoint import SMALL, STELLA
from bench.limits import Limits, bandwidths, best, matmul_rates, roofline


def test_compute_bounds_long_texts_and_traffic_short_ones() -> None:
    machine = Limits("float32", matmul=1e12, bandwidth=1e11)
    assert machine.seconds(STELLA, [512] * 100) == machine.compute_seconds(STELLA, [512] * 100)
    assert machine.seconds(STELLA, [8]) == machine.traffic_seconds(STELLA, [8]) == pytest.approx(0.0161, rel=0.01)


def test_roofline_is_the_smaller_rate() -> None:
    machine = Limits("bfloat16", matmul=790e12, bandwidth=1e20)
    [[dtype, batch, gflop, compute, traffic, both]] = roofline(STELLA, machine, [512])
    assert (dtype, batch, gflop) == ("bfloat16", "1 x 512", "0.8556")
    assert both == compute == pytest.approx(923e3, rel=1e-3)
    assert isinstance(traffic, float) and traffic > 1e9


def test_rates_for_each_library_and_count(monkeypatch) -> None:
    monkeypatch.setattr("bench.limits.TOKENS", {"cpu": (8, 16)})
    monkeypatch.setattr("bench.limits.find_spec", lambda name: None)
    rates = list(matmul_rates(SMALL, "float32"))
    assert [rate[:2] for rate in rates] == [("jax", 8), ("jax", 16)]
    assert all(rate > 0 for *_, rate in rates)


def test_memory_bandwidths(monkeypatch) -> None:
    monkeypatch.setattr("bench.limits.STREAM_BYTES", {"cpu": 2**12})
    assert set(bandwidths()) == {"triad", "sum"}


def test_first_run_is_excluded() -> None:
    calls: list[None] = []
    assert best(lambda: calls.append(None), 3) > 0
    assert len(calls) == 4
