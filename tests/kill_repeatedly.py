"""Runs a command in child processes and kills them, until enough were killed and two ended by themselves.

python kill_repeatedly.py FOLDER KILLS SEED COMMAND...

OUT in the command stands for FOLDER/out, which is renamed to FOLDER/out-0, out-1 and so on when a child finishes. The
first two children are not killed; they show how long the command takes. If FOLDER/start exists, every output starts as
a copy of it. A child is killed at a random call that concerns files in FOLDER, or at a random moment. Prints how many
were killed, how many of them at a call, how many calls an undisturbed child makes, and how many finished.
"""

import json
import os
import shutil
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

KINDS = ("open", "os", "shutil")  # of audit events that count as calls
MARGIN = 1.2  # some calls and moments come after the end

# Imported once, as imports take most of a command's time; they must not start threads before the forks.
MODULES = ("convert.flax_layout", "convert.report", "stella_jax.embedder", "train.loop", "train.hard_negatives")


class Children:
    """Children of this process that run the command."""

    def __init__(self, folder: Path, command: list[str]):
        self._folder, self._report = str(folder), folder / "report.txt"
        self._command, self._parent = [word.replace("OUT", f"{folder}/out") for word in command], os.getpid()
        self._calls, self._last = 0, -1
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple) -> None:
        if os.getpid() != self._parent and event.split(".")[0] in KINDS and self._folder in str(arguments):
            if self._calls == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
            self._calls += 1

    def run(self, last: int = -1, seconds: float = 3600) -> tuple[int, str]:
        """Runs a child; kills it at call number `last` or after `seconds`. Returns exit code and output."""
        self._last = last
        self._report.write_text("")
        child = os.fork()
        if not child:
            self._run()
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.002)
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(ended[1]), self._report.read_text()

    def _run(self) -> None:
        from stella_jax.cli.main import main

        code = 1
        try:
            descriptor = os.open(self._report, os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            self._calls = 0
            code = main(self._command)
            print(self._calls, flush=True)
        finally:
            os._exit(code)


def run(folder: Path, kills: int, random: Random, command: list[str]) -> dict[str, int]:
    children, out, start = Children(folder, command), folder / "out", folder / "start"
    found = {"killed": 0, "at calls": 0, "calls": 0, "ended": 0}
    seconds = 0.0
    while found["killed"] < kills or found["ended"] < 2:
        if start.exists():
            shutil.copytree(start, out)
        code, said, started = -signal.SIGKILL, "", 0.0
        while code:
            limit: dict[str, Any] = {}
            at_call = random.random() < 0.5
            if found["ended"] >= 2:
                last, moment = random.randrange(int(found["calls"] * MARGIN)), random.uniform(0, seconds * MARGIN)
                limit = {"last": last} if at_call else {"seconds": moment}
            started = time.monotonic()
            code, said = children.run(**limit)
            if code == 1 and "already exists" in said:  # the previous child was killed after its last rename
                break
            assert code in (0, -signal.SIGKILL), (code, said)
            found["killed"] += code != 0
            found["at calls"] += code != 0 and at_call
        if found["ended"] < 2:
            found["calls"], seconds = int(said.split()[-1]), time.monotonic() - started
        out.rename(folder / f"out-{found['ended']}")
        found["ended"] += 1
    return found


if __name__ == "__main__":
    for module in MODULES:
        import_module(module)
    folder, kills, seed, *command = sys.argv[1:]
    print(json.dumps(run(Path(folder), int(kills), Random(int(seed)), command)))
