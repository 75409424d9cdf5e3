"""Stopping: at once outside of a deferred block, after a grace period inside."""

import os
import signal

import pytest

from stella_jax import graceful_shutdown
from stella_jax.graceful_shutdown import GracefulShutdown, Stopped, stopping_on_sigterm


def work(stop: GracefulShutdown, *steps) -> None:
    with stop.deferred():
        for step in steps:
            step()


def test_a_stop_outside_of_a_deferred_block():
    with pytest.raises(Stopped):
        GracefulShutdown(30).request()


def test_no_stop():
    stop = GracefulShutdown(0)
    work(stop, stop.check)
    assert not stop.requested


def test_work_continues_for_the_grace_period(monkeypatch):
    now = 100.0
    monkeypatch.setattr(graceful_shutdown.time, "monotonic", lambda: now)
    stop, done = GracefulShutdown(30), []

    def later() -> None:
        nonlocal now
        now = 130.0

    with pytest.raises(Stopped):
        work(stop, stop.request, stop.check, later, stop.check, lambda: done.append(stop.requested))
    assert done == [True]


def test_a_check_after_the_grace_period(monkeypatch):
    now = 100.0
    monkeypatch.setattr(graceful_shutdown.time, "monotonic", lambda: now)
    stop, done = GracefulShutdown(30), []

    def later() -> None:
        nonlocal now
        now = 130.1

    with pytest.raises(Stopped):
        work(stop, stop.request, later, stop.check, lambda: done.append("not reached"))
    assert done == []


def test_a_second_request_stops_at_once():
    stop, done = GracefulShutdown(1000), []
    with pytest.raises(Stopped):
        work(stop, stop.request, lambda: done.append("reached"), stop.request, lambda: done.append("not reached"))
    assert done == ["reached"]


def test_an_error_in_the_block_comes_first():
    stop = GracefulShutdown(30)
    with pytest.raises(ZeroDivisionError):
        work(stop, stop.request, lambda: 1 / 0)
    with pytest.raises(Stopped):
        stop.request()


def test_sigterm_and_its_previous_handler():
    before = signal.getsignal(signal.SIGTERM)
    stop = GracefulShutdown(30)

    def run() -> None:
        with stopping_on_sigterm(stop):
            work(stop, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: done.append(stop.requested))

    done: list[bool] = []
    with pytest.raises(Stopped):
        run()
    assert done == [True]
    assert signal.getsignal(signal.SIGTERM) is before
