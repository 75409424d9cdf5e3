"""Compiling shapes in threads: once each, before the first batch, and errors are raised there."""

import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax import monitoring
from paths import GOLDENS

from stella_jax import Stella, compile_ahead
from stella_jax.compile_ahead import CompileAhead


def test_each_shape_is_compiled_once() -> None:
    compiled: list[tuple[int, int]] = []
    may = threading.Event()

    def compile(shape: tuple[int, int]) -> None:
        may.wait()
        compiled.append(shape)

    ahead = CompileAhead(compile)
    ahead.start([(1, 8), (2, 4)])
    ahead.start([(1, 8)])
    assert not compiled
    may.set()
    ahead.wait((2, 4))
    assert (2, 4) in compiled
    ahead.wait((1, 8))
    assert sorted(compiled) == [(1, 8), (2, 4)]
    ahead.wait((9, 9))  # not started


def test_compile_error_is_raised_by_wait() -> None:
    def compile(shape: tuple[int, int]) -> None:
        raise MemoryError(shape)

    ahead = CompileAhead(compile)
    ahead.start([(1, 8)])
    with pytest.raises(MemoryError):
        ahead.wait((1, 8))


def test_cancel_drops_waiting_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On eight processors four threads compile; cancelling ends what no thread has started, and nothing else."""
    monkeypatch.setattr(compile_ahead, "cpu_count", lambda: 8)
    started, may, compiled = threading.Semaphore(0), threading.Event(), []

    def compile(shape: tuple[int, int]) -> None:
        started.release()
        may.wait()
        compiled.append(shape)

    ahead = CompileAhead(compile)
    shapes = [(1, i) for i in range(7)]
    ahead.start(shapes)
    try:
        assert all(started.acquire(timeout=10) for _ in range(4))
        assert not started.acquire(timeout=0.2), "more threads than half of the processors"
        ahead.cancel()
    finally:
        may.set()
    for shape in shapes:
        ahead.wait(shape)
    assert sorted(compiled) == shapes[:4]
    ahead.start(shapes[-1:])
    ahead.wait(shapes[-1])
    assert compiled[-1] == shapes[-1]


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of the threads that compiled."""
    threads: list[str] = []

    def listen(event: str, duration_secs: float, **fields: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            threads.append(threading.current_thread().name)

    monitoring.register_event_duration_secs_listener(listen)
    yield threads
    monitoring.unregister_event_duration_listener(listen)


def test_batches_use_the_compiled_program(compilations: list[str]) -> None:
    jax.clear_caches()
    stella = Stella.from_pretrained(GOLDENS / "stella", mesh="data=2")
    texts = ["a", "a b c d e f g h i j k l", " ".join("abcdefghijklmnopqrst")]
    compilations.clear()
    found = stella.encode(texts)
    assert len(compilations) == 6 and all(name.startswith("compile") for name in compilations)
    np.testing.assert_array_equal(stella.encode(texts), found)
    assert len(compilations) == 6
