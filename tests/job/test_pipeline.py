"""Prefetching and background writing: order, errors, depth, and the end of their threads."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stella_jax.job.pipeline import BackgroundWriter, prefetch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def counted(made: list[int], count: int = 9, error: Exception | None = None) -> Iterator[int]:
    for i in range(count):
        made.append(i)
        yield i
    if error:
        raise error


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether another thread makes this true within ten seconds."""
    for _ in range(1000):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


# prefetch


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_items_come_in_order(depth, count):
    with prefetch(range(count), depth) as items:
        assert [*items] == [*range(count)]


def test_the_depth_of_prefetching():
    made: list[int] = []
    with prefetch(counted(made), 2) as items:
        assert next(items) == 0
        assert eventually(lambda: made == [0, 1, 2])
        assert next(items) == 1
        assert eventually(lambda: made == [0, 1, 2, 3])


def test_items_are_made_in_another_thread():
    makers = (threading.current_thread().name for _ in range(2))
    with prefetch(makers, 1) as items:
        assert {*items} == {"prefetch_0"}


def test_an_error_is_raised_in_place_of_its_item():
    with prefetch(counted([], 2, ZeroDivisionError("two")), 5) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ZeroDivisionError, match="two"):
            next(items)


def test_a_failed_block_ends_prefetching():
    made: list[int] = []

    def fail() -> None:
        with prefetch(counted(made, 1000), 2) as items:
            next(items)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(made) <= 3


def test_the_first_items_are_made_before_they_are_requested():
    made: list[int] = []
    with prefetch(counted(made), 2):
        while len(made) < 2:
            time.sleep(0.001)
    assert len(made) == 2


# BackgroundWriter


def test_work_is_done_in_order_and_results_are_handled_by_the_caller():
    results: list[tuple[int, str]] = []
    workers: list[str] = []

    def work(i: int) -> int:
        workers.append(threading.current_thread().name)
        return i

    with BackgroundWriter(2, lambda i: results.append((i, threading.current_thread().name))) as writer:
        for i in range(9):
            writer.submit(work, i)
    assert results == [(i, threading.current_thread().name) for i in range(9)]
    assert {*workers} == {"writer_0"}


def test_at_most_depth_pieces_wait():
    gate, started, asked = threading.Event(), [], []

    def work(i: int) -> None:
        started.append(i)
        gate.wait(10)

    def submit_all() -> None:
        with BackgroundWriter(1, lambda _: None) as writer:
            for i in range(3):
                asked.append(i)
                writer.submit(work, i)

    thread = threading.Thread(target=submit_all)
    thread.start()
    assert eventually(lambda: asked == [0, 1] and started == [0])
    gate.set()
    thread.join()
    assert started == [0, 1, 2]


def fail(i: int) -> None:
    raise ZeroDivisionError(f"piece {i}")


def test_an_error_is_raised_by_a_later_submit():
    done: list[int] = []

    def run() -> None:
        with BackgroundWriter(1, lambda _: None) as writer:
            writer.submit(fail, 0)
            for i in range(1, 4):
                writer.submit(done.append, i)

    with pytest.raises(ZeroDivisionError, match="piece 0"):
        run()
    assert done in ([1], [])


def test_an_error_in_the_last_piece_is_raised_at_the_end():
    writer = BackgroundWriter(1, lambda _: None)
    with pytest.raises(ZeroDivisionError, match="piece 7"), writer:
        writer.submit(fail, 7)


def test_an_error_in_the_result_handler():
    done: list[int] = []

    def refuse(_: object) -> None:
        raise ZeroDivisionError("too many")

    writer = BackgroundWriter(5, refuse)
    with pytest.raises(ZeroDivisionError, match="too many"), writer:
        writer.submit(done.append, 1)
    assert done == [1]


def test_submitted_work_is_done_if_the_block_fails():
    gate, done, results = threading.Event(), [], []

    def work(i: int) -> None:
        gate.wait(10)
        done.append(i)

    def run() -> None:
        with BackgroundWriter(2, results.append) as writer:
            writer.submit(work, 0)
            writer.submit(work, 1)
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (done, results) == ([0, 1], [])
