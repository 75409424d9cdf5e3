"""Two threads beside the caller's: order, errors, how far they run ahead, and that they end."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stella_jax.job.pipeline import BackgroundWriter, prefetch


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def counted(made: list[int], count: int = 9, error: Exception | None = None) -> Iterator[int]:
    for i in range(count):
        made.append(i)
        yield i
    if error:
        raise error


def meanwhile(condition: Callable[[], bool]) -> bool:
    """Whether another thread makes this true, given plenty of time."""
    for _ in range(1000):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


# Ahead


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_items_come_in_order(depth, count):
    with prefetch(range(count), depth) as coming:
        assert [*coming] == [*range(count)]


def test_so_many_are_made_ahead_and_no_more():
    made: list[int] = []
    with prefetch(counted(made), 2) as coming:
        assert next(coming) == 0
        assert meanwhile(lambda: made == [0, 1, 2])
        assert next(coming) == 1
        assert meanwhile(lambda: made == [0, 1, 2, 3])


def test_items_are_made_in_another_thread():
    makers = (threading.current_thread().name for _ in range(2))
    with prefetch(makers, 1) as coming:
        assert {*coming} == {"prefetch_0"}


def test_an_error_in_the_making_comes_where_the_item_would():
    with prefetch(counted([], 2, ZeroDivisionError("two")), 5) as coming:
        assert [next(coming), next(coming)] == [0, 1]
        with pytest.raises(ZeroDivisionError, match="two"):
            next(coming)


def test_a_block_that_fails_ends_the_making():
    made: list[int] = []

    def fail() -> None:
        with prefetch(counted(made, 1000), 2) as coming:
            next(coming)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(made) <= 3


def test_the_first_items_are_made_before_they_are_asked_for():
    made: list[int] = []
    with prefetch(counted(made), 2):
        while len(made) < 2:
            time.sleep(0.001)
    assert len(made) == 2


# BackgroundWriter


def test_work_is_done_in_order_and_its_results_told_by_the_caller():
    told: list[tuple[int, str]] = []
    workers: list[str] = []

    def work(i: int) -> int:
        workers.append(threading.current_thread().name)
        return i

    with BackgroundWriter(2, lambda i: told.append((i, threading.current_thread().name))) as behind:
        for i in range(9):
            behind.do(work, i)
    assert told == [(i, threading.current_thread().name) for i in range(9)]
    assert {*workers} == {"writer_0"}


def test_no_more_than_the_depth_waits():
    gate, begun, asked = threading.Event(), [], []

    def work(i: int) -> None:
        begun.append(i)
        gate.wait(10)

    def hand_over() -> None:
        with BackgroundWriter(1, lambda _: None) as behind:
            for i in range(3):
                asked.append(i)
                behind.do(work, i)

    thread = threading.Thread(target=hand_over)
    thread.start()
    assert meanwhile(lambda: asked == [0, 1] and begun == [0])
    gate.set()
    thread.join()
    assert begun == [0, 1, 2]


def fail(i: int) -> None:
    raise ZeroDivisionError(f"piece {i}")


def test_an_error_is_raised_at_a_later_piece():
    done: list[int] = []

    def run() -> None:
        with BackgroundWriter(1, lambda _: None) as behind:
            behind.do(fail, 0)
            for i in range(1, 4):
                behind.do(done.append, i)

    with pytest.raises(ZeroDivisionError, match="piece 0"):
        run()
    assert done in ([1], [])


def test_an_error_in_the_last_piece_is_raised_at_the_end():
    behind = BackgroundWriter(1, lambda _: None)
    with pytest.raises(ZeroDivisionError, match="piece 7"), behind:
        behind.do(fail, 7)


def test_what_the_caller_raises_over_a_result_ends_the_block():
    done: list[int] = []

    def refuse(_: object) -> None:
        raise ZeroDivisionError("too many")

    behind = BackgroundWriter(5, refuse)
    with pytest.raises(ZeroDivisionError, match="too many"), behind:
        behind.do(done.append, 1)
    assert done == [1]


def test_where_the_block_fails_what_was_handed_over_is_done_all_the_same():
    gate, done, told = threading.Event(), [], []

    def work(i: int) -> None:
        gate.wait(10)
        done.append(i)

    def run() -> None:
        with BackgroundWriter(2, told.append) as behind:
            behind.do(work, 0)
            behind.do(work, 1)
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (done, told) == ([0, 1], [])
