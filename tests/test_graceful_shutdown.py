"""A wish to stop: at once outside of work, with a grace period within."""

import os
import signal

import pytest

from stella_jax import graceful_shutdown
from stella_jax.graceful_shutdown import GracefulShutdown, Stopped, stopping_on_sigterm


def work(wish: GracefulShutdown, *steps) -> None:
    with wish.deferred():
        for step in steps:
            step()


def test_outside_of_patience_it_stops_at_once():
    with pytest.raises(Stopped):
        GracefulShutdown(30).request()


def test_without_a_wish_nothing_happens():
    wish = GracefulShutdown(0)
    work(wish, wish.check)
    assert not wish.requested


def test_work_goes_on_for_the_grace_period_and_ends_stopped(monkeypatch):
    now = 100.0
    monkeypatch.setattr(graceful_shutdown.time, "monotonic", lambda: now)
    wish, done = GracefulShutdown(30), []

    def later() -> None:
        nonlocal now
        now = 130.0

    with pytest.raises(Stopped):
        work(wish, wish.request, wish.check, later, wish.check, lambda: done.append(wish.requested))
    assert done == [True]


def test_after_the_grace_period_a_check_stops(monkeypatch):
    now = 100.0
    monkeypatch.setattr(graceful_shutdown.time, "monotonic", lambda: now)
    wish, done = GracefulShutdown(30), []

    def later() -> None:
        nonlocal now
        now = 130.1

    with pytest.raises(Stopped):
        work(wish, wish.request, later, wish.check, lambda: done.append("not reached"))
    assert done == []


def test_a_second_wish_stops_at_once():
    wish, done = GracefulShutdown(1000), []
    with pytest.raises(Stopped):
        work(wish, wish.request, lambda: done.append("reached"), wish.request, lambda: done.append("not reached"))
    assert done == ["reached"]


def test_an_error_in_the_block_is_told_before_the_wish():
    wish = GracefulShutdown(30)
    with pytest.raises(ZeroDivisionError):
        work(wish, wish.request, lambda: 1 / 0)
    with pytest.raises(Stopped):
        wish.request()


def test_sigterm_asks_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    wish = GracefulShutdown(30)

    def run() -> None:
        with stopping_on_sigterm(wish):
            work(wish, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: done.append(wish.requested))

    done: list[bool] = []
    with pytest.raises(Stopped):
        run()
    assert done == [True]
    assert signal.getsignal(signal.SIGTERM) is before
