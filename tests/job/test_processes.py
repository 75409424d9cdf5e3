"""The index of this process: given, detected, or an error."""

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

from stella_jax.cli.main import main
from stella_jax.job import processes
from stella_jax.job.processes import CONNECT_SCRIPT, Processes, resolve_processes


def replace_script(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Runs this in the child process instead of connecting."""
    monkeypatch.setattr(processes, "CONNECT_SCRIPT", f"import json, os, sys\n{script}")


def test_given_numbers_need_no_connection(monkeypatch):
    replace_script(monkeypatch, "os.abort()")
    assert resolve_processes(None, 4, 2) == Processes(2, 4)


def test_the_result_of_the_connection_is_used(monkeypatch):
    replace_script(monkeypatch, "print('a word'); print(json.dumps([1, 3, {'jax_cuda_visible_devices': '7'}]))")
    before = jax.config.read("jax_cuda_visible_devices")
    try:
        assert resolve_processes() == Processes(1, 3)
        assert jax.config.read("jax_cuda_visible_devices") == "7"
    finally:
        jax.config.update("jax_cuda_visible_devices", before)


def test_given_numbers_are_passed_on(monkeypatch):
    script = "given = json.loads(sys.argv[1]); assert given[3] == given[0]; print(json.dumps([given[2], given[1], {}]))"
    replace_script(monkeypatch, f"assert os.environ['JAX_PLATFORMS'] == 'cpu'; {script}")
    assert resolve_processes("127.0.0.1:1", 4, 3) == Processes(3, 4)


@pytest.mark.parametrize(
    ("script", "reason"),
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
    ids=["error", "abort", "exit"],
)
def test_a_failed_connection(monkeypatch, script, reason, refused):
    replace_script(monkeypatch, script)
    with refused(reason):
        resolve_processes()


def test_nothing_is_imported_from_the_working_directory(monkeypatch, tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    replace_script(monkeypatch, "import jax; print(json.dumps([0, 1, {}]))")
    assert resolve_processes() == Processes(0, 1)


def can_connect(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.mark.slow
def test_a_lone_process_listens_at_its_address_until_a_timeout(monkeypatch, refused):
    """JAX itself would listen on all interfaces, of which 127.0.0.2 stands for another."""
    monkeypatch.setattr(processes, "CONNECT_SECONDS", 2)
    port, answers = free_port(), []

    def probe() -> None:
        while not (answers or is_over.is_set()):
            answers.extend([can_connect("127.0.0.2", port)] if can_connect("127.0.0.1", port) else [])

    is_over = threading.Event()
    thread = threading.Thread(target=probe)
    thread.start()
    try:
        with refused("DEADLINE_EXCEEDED", mask="DEADLINE_EXCEEDED[^;]*"):
            resolve_processes(f"127.0.0.1:{port}", 2, 0)
    finally:
        is_over.set()
        thread.join()
    assert answers == [False]


@pytest.fixture
def signal_while_connecting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Sends a signal to this process while its child waits for others; the child's process id is in the file."""
    first_lines, pid = CONNECT_SCRIPT.partition("import jax")[0], tmp_path / "pid"
    tell = f"print(os.getpid(), file=open({str(pid)!r}, 'w'), flush=True)"
    monkeypatch.setattr(processes, "CONNECT_SCRIPT", f"{first_lines}{tell}\nwhile 1: 0")
    threads: list[threading.Thread] = []

    def send(number: int) -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    def prepare(number: int) -> Path:
        threads.append(threading.Thread(target=send, args=(number,)))
        threads[0].start()
        return pid

    yield prepare
    threads[0].join()


def is_running(pid: Path) -> bool:
    return runs(int(pid.read_text()))


def test_an_interrupt_ends_the_child_process(signal_while_connecting):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        pid = signal_while_connecting(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            resolve_processes()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_running(pid)


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["job", "dry-run"])
def test_sigterm_while_connecting(signal_while_connecting, tmp_path, capsys, options, check_message):
    pid = signal_while_connecting(signal.SIGTERM)
    assert main(["embed", "a.txt", "--out", str(tmp_path / "out"), "--executor", "distributed", *options]) == 143
    check_message(capsys.readouterr().err.splitlines()[0], "stella-jax: ", "SIGTERM")
    assert not is_running(pid)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--executor", "distributed", "--processes", "2"], ["--processes", "--process"]),
        (["--executor", "distributed", "--process", "0"], ["--processes", "--process"]),
        (["--executor", "distributed", "--processes", "2", "--process", "2"], ["--process 2", "--processes 2"]),
        (["--processes", "2", "--process", "0"], ["--executor distributed"]),
        (["--coordinator", "127.0.0.1:1"], ["--executor distributed"]),
    ],
)
def test_options_that_do_not_fit(tmp_path, monkeypatch, capsys, options, names, check_message):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "a.txt", "--out", "out", *options]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), *names)
