"""Which process of how many this is: given, found out, or a sentence."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jobs import free_port, runs

from stella_jax import StellaError
from stella_jax.cli import main
from stella_jax.job import hosts
from stella_jax.job.hosts import MEETING, Hosts, meet


def at_the_meeting(monkeypatch: pytest.MonkeyPatch, happens: str) -> None:
    """Has this happen in place of a meeting."""
    monkeypatch.setattr(hosts, "MEETING", f"import json, os, sys\n{happens}")


def test_numbers_that_are_given_need_no_meeting(monkeypatch):
    at_the_meeting(monkeypatch, "os.abort()")
    assert meet(None, 4, 2) == Hosts(2, 4)


def test_what_the_meeting_tells_is_taken(monkeypatch):
    at_the_meeting(monkeypatch, "print('a word'); print(json.dumps([1, 3, {'jax_cuda_visible_devices': '7'}]))")
    before = jax.config.read("jax_cuda_visible_devices")
    try:
        assert meet() == Hosts(1, 3)
        assert jax.config.read("jax_cuda_visible_devices") == "7"
    finally:
        jax.config.update("jax_cuda_visible_devices", before)


def test_what_is_known_is_told_at_the_meeting(monkeypatch):
    tells = "given = json.loads(sys.argv[1]); assert given[3] == given[0]; print(json.dumps([given[2], given[1], {}]))"
    at_the_meeting(monkeypatch, f"assert os.environ['JAX_PLATFORMS'] == 'cpu'; {tells}")
    assert meet("127.0.0.1:1", 4, 3) == Hosts(3, 4)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (
            "raise ValueError('coordinator_address should be defined.')",
            "ValueError: coordinator_address should be defined",
        ),
        (
            "print('F1122 x] fatal errors. absl::Status: CANCELLED: No', file=sys.stderr, flush=True); os.abort()",
            "CANCELLED: No",
        ),
        ("os._exit(3)", "exit code 3"),
    ],
)
def test_who_does_not_meet_is_told_in_a_sentence(monkeypatch, happens, reason):
    at_the_meeting(monkeypatch, happens)
    with pytest.raises(StellaError) as told:
        meet()
    assert str(told.value).startswith(f"the processes of the job did not meet: {reason}. Give each --processes N")


def test_nothing_is_imported_from_the_working_directory(monkeypatch, tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    at_the_meeting(monkeypatch, "import jax; print(json.dumps([0, 1, {}]))")
    assert meet() == Hosts(0, 1)


def can_connect(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_who_comes_alone_waits_in_vain_where_it_was_told_to(monkeypatch):
    """JAX itself would listen on all interfaces, of which 127.0.0.2 stands for another."""
    monkeypatch.setattr(hosts, "MEETING_SECONDS", 2)
    port, answers = free_port(), []

    def probe() -> None:
        while not (answers or is_over.is_set()):
            answers.extend([can_connect("127.0.0.2", port)] if can_connect("127.0.0.1", port) else [])

    is_over = threading.Event()
    thread = threading.Thread(target=probe)
    thread.start()
    try:
        with pytest.raises(StellaError, match="did not meet: DEADLINE_EXCEEDED"):
            meet(f"127.0.0.1:{port}", 2, 0)
    finally:
        is_over.set()
        thread.join()
    assert answers == [False]


@pytest.fixture
def struck_at_the_meeting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Has a signal come to this process while another waits at the meeting, whose number is then in that file."""
    begin, pid = MEETING.partition("import jax")[0], tmp_path / "pid"
    tell = f"print(os.getpid(), file=open({str(pid)!r}, 'w'), flush=True)"
    monkeypatch.setattr(hosts, "MEETING", f"{begin}{tell}\nwhile 1: 0")
    threads: list[threading.Thread] = []

    def strike(number: int) -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    def prepare(number: int) -> Path:
        threads.append(threading.Thread(target=strike, args=(number,)))
        threads[0].start()
        return pid

    yield prepare
    threads[0].join()


def is_running(pid: Path) -> bool:
    return runs(int(pid.read_text()))


def test_nobody_stays_at_a_meeting_whose_process_is_interrupted(struck_at_the_meeting):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        pid = struck_at_the_meeting(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            meet()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_running(pid)


@pytest.mark.parametrize(("options", "kept"), [([], "; finished parts are kept, "), (["--dry-run"], "\n")])
def test_sigterm_at_the_meeting_ends_as_it_does_later(struck_at_the_meeting, tmp_path, capsys, options, kept):
    pid = struck_at_the_meeting(signal.SIGTERM)
    assert main(["embed", "a.txt", "--out", str(tmp_path / "out"), "--executor", "distributed", *options]) == 143
    assert capsys.readouterr().err.startswith(f"stella-jax: stopped by SIGTERM{kept}")
    assert not is_running(pid)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--executor", "distributed", "--processes", "2"], "--processes and --process: pass both or neither."),
        (["--executor", "distributed", "--process", "0"], "--processes and --process: pass both or neither."),
        (
            ["--executor", "distributed", "--processes", "2", "--process", "2"],
            "--process 2: must be below --processes 2",
        ),
        (["--processes", "2", "--process", "0"], "require --executor distributed."),
        (["--coordinator", "127.0.0.1:1"], "require --executor distributed."),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "a.txt", "--out", "out", *options]) == 1
    assert sentence in capsys.readouterr().err
