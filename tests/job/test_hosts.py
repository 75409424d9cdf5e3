"""Which process of how many this is: given, found out, or a sentence."""

from typing import Any

import jax
import pytest

from stella_jax import StellaError
from stella_jax.cli import main
from stella_jax.job.hosts import Hosts, meet


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What jax.distributed was asked, in place of asking it; this is process 1 of 3."""
    calls: list[Any] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: calls.append("parted"))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return calls


def test_numbers_that_are_given_need_no_meeting(met):
    assert meet(None, 4, 2) == Hosts(2, 4)
    assert met == []


def test_they_meet_and_part(met):
    assert meet("127.0.0.1:1", 3, 1) == Hosts(1, 3)
    assert met == [("127.0.0.1:1", 3, 1), "parted"]
    assert meet() == Hosts(1, 3)
    assert met[2:] == [(None, None, None), "parted"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore"), "DEADLINE_EXCEEDED: Barrier timed out."),
        (ValueError("coordinator_address should be defined."), "coordinator_address should be defined."),
        (ConnectionError(), "ConnectionError."),
    ],
)
def test_who_does_not_meet_is_told_in_a_sentence(monkeypatch, error, reason):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(StellaError) as told:
        meet()
    assert str(told.value).startswith(f"the processes of the job did not meet: {reason} Give each --processes N")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--executor", "distributed", "--processes", "2"], "--processes and --process go together."),
        (["--executor", "distributed", "--process", "0"], "--processes and --process go together."),
        (["--executor", "distributed", "--processes", "2", "--process", "2"], "--process 2 is none of 2, counted from"),
        (["--processes", "2", "--process", "0"], "go with --executor distributed."),
        (["--coordinator", "127.0.0.1:1"], "go with --executor distributed."),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "a.txt", "--out", "out", *options]) == 1
    assert sentence in capsys.readouterr().err
