"""Ctrl-C before, while and after a command's modules are imported."""

import gc
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from jobs import write_corpus

import stella_jax.__main__
from stella_jax.cli.exit_codes import exit_code
from stella_jax.cli.interrupts import interrupts_after
from stella_jax.cli.main import main


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; a shell's background job, such as a check, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_during_a_garbage_collection(capsys, monkeypatch, check_message):
    def collected(phase: str, info: object) -> None:
        gc.callbacks.remove(collected)
        signal.raise_signal(signal.SIGINT)

    def work() -> None:
        gc.callbacks.append(collected)
        gc.collect()
        threading.Event().wait(10)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which exit_code replaces
    assert exit_code("stella-jax", work) == 130
    error = capsys.readouterr().err
    assert error.startswith("\n")  # after the terminal's ^C
    check_message(error.strip(), "stella-jax: ")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_during_imports_takes_effect_after_them():
    done: list[str] = []

    def imports() -> None:
        with interrupts_after():
            signal.raise_signal(signal.SIGINT)
            done.append("imports")

    with pytest.raises(KeyboardInterrupt):
        imports()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_a_command_starts(capsys, monkeypatch, check_message):
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("stella_jax.cli.main.main", interrupted)
    assert stella_jax.__main__.main() == 130
    error = capsys.readouterr().err
    assert error.startswith("\n")  # after the terminal's ^C
    check_message(error.strip(), "stella-jax: ")


def test_interrupt(tmp_path, capsys, monkeypatch, check_message):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stella_jax.cli.commands.run_files", interrupted)
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["tea"])
    assert main(["embed", str(corpus), "--out", str(tmp_path / "out")]) == 130
    check_message(capsys.readouterr().err.strip(), "stella-jax: ")
