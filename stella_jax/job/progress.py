"""The progress of a job: a bar or a line each minute on stderr, and `_job/progress*.jsonl` for programs."""

import json
import sys
import threading
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tqdm import tqdm

from stella_jax.batching import Batch
from stella_jax.errors import StellaError
from stella_jax.readers.splits import Split
from stella_jax.storage.store import Store

Show = Literal["bar", "lines", "nothing"]
Task = Literal["embedding", "scoring"]

DONE: dict[Task, str] = {"embedding": "embedded", "scoring": "scored"}

LINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Summary:
    """The counts of one run of one process, and of the whole job if this process closed it.

    Attributes:
      rows, tokens: embedded or scored by this run.
      computed_tokens: with padding.
      job_rows, job_rejected: of the complete job; None if another process closed it.
    """

    rows: int
    tokens: int
    computed_tokens: int
    seconds: float
    job_rows: int | None
    job_rejected: int | None
    task: Task = "embedding"

    def __str__(self) -> str:
        done = DONE[self.task]
        now = f"{self.tokens} tokens in {self.seconds:.1f} s ({self.rows / self.seconds:.1f} texts/s, "
        now += f"{self.tokens / self.seconds:.0f} tokens/s"
        if self.job_rows is None:
            return f"{self.rows} rows {done} by this process; {now})"
        job = f"{self.job_rows} rows {done}, {self.job_rejected} rejected"
        if not self.rows:
            return f"{job}; nothing was left to do"
        before = f"; {self.job_rows - self.rows} of the rows by other runs" if self.rows < self.job_rows else ""
        return f"{job}; {now}{before})"


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of input bytes, parts, rows, tokens, tokens with padding (`computed_tokens`), and rejected rows."""

    bytes: int = 0
    parts: int = 0
    rows: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    rejected: int = 0

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


def progress_name(process: int) -> str:
    return f"_job/progress-{process}.jsonl" if process else "_job/progress.jsonl"


class Progress:
    """Counts the work of one process, and shows it.

    Args:
      store: for the progress file, which is written once `start` is called.
      process: index of this process in the job.
      show: on stderr: a bar, or a line each minute.
    """

    def __init__(self, store: Store, process: int = 0, show: Show = "nothing", task: Task = "embedding"):
        self.parts = self.rows = self.tokens = self.computed_tokens = self.rejected = 0
        self._store = store
        self._process = process
        self._show = show
        self._task: Task = task
        self._bar = tqdm(unit="B", unit_scale=True, disable=show != "bar", dynamic_ncols=True)
        self._started = self._shown = time.perf_counter()
        self._total = self._done_before = self._done = 0
        self._splits: dict[int, int] = {}  # bytes done of each split
        self.phase = "loading"
        self._writes = False
        self._written = float("-inf")
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        self._bar.close()
        if kind is not None:
            self._last_line("stopped")

    @property
    def counts(self) -> Counts:
        done = self._done - self._done_before
        return Counts(done, self.parts, self.rows, self.tokens, self.computed_tokens, self.rejected)

    @property
    def seconds(self) -> float:
        """Seconds since `start`."""
        return time.perf_counter() - self._started

    def start(self, total: int, done: int) -> None:
        """Starts the clock and the progress file; `done` of `total` bytes were done earlier."""
        self._total, self._done, self._done_before = total, done, done
        self._bar.reset(total)
        self._bar.update(done)
        self._started = self._shown = time.perf_counter()
        self.phase, self._writes = self._task, True
        self._line(0)

    def add_work(self, size: int) -> None:
        """Adds bytes that were taken over from other processes."""
        self._total += size
        self._bar.total = self._total
        self.phase = self._task

    def on_batch(self, batch: Batch) -> None:
        """Called with each finished batch."""
        self.tokens += batch.tokens
        self.computed_tokens += batch.rows * batch.length
        self.rows += len(batch.texts)
        self._bar.set_postfix_str(f"{self.rows} rows, {self.tokens / self.seconds:.0f} tokens/s", refresh=False)
        self._bar.update(0)
        self._line(self._store.log_interval)

    def on_commit(self, split: Split, read: int, rejected: int) -> None:
        """Called after each commit; `read` is the bytes of the split up to there."""
        self.parts += 1
        self.rejected += rejected
        self._advance(max(0, read - self._splits.get(split.number, 0)))
        self._splits[split.number] = max(read, self._splits.get(split.number, 0))
        self._line(self._store.log_interval / 5)

    def add(self, other: Counts) -> None:
        """Adds the work of another process, which has no progress file."""
        self.parts += other.parts
        self.tokens += other.tokens
        self.computed_tokens += other.computed_tokens
        self.rows += other.rows
        self.rejected += other.rejected
        self._advance(other.bytes)
        self._line(self._store.log_interval / 5)

    def waiting(self) -> None:
        """Called while this process waits for others."""
        self.phase = "waiting"
        self._line(self._store.log_interval)

    def closing(self) -> None:
        """Called before the job is closed."""
        self.phase = "closing"
        self._line(self._store.log_interval)

    def end(self, totals: dict[str, int] | None) -> Summary:
        """Ends the progress file; returns the counts of this run and the totals of the job, if known."""
        self._last_line("done")
        job = (totals["rows"], totals["rejected"]) if totals else (None, None)
        return Summary(self.rows, self.tokens, self.computed_tokens, self.seconds, *job, self._task)

    def _advance(self, size: int) -> None:
        self._done += size
        self._bar.update(size)

    def _last_line(self, phase: str) -> None:
        self.phase = phase
        self._line(0)

    def _line(self, least_seconds: float) -> None:
        """Writes a line, unless there was one less than so many seconds ago."""
        with self._lock:
            now = time.monotonic()
            if self._writes and now - self._written >= least_seconds:
                self._written = now
                # A lost line must not end the job.
                with suppress(OSError, StellaError):
                    self._store.append(progress_name(self._process), json.dumps(self._fields()).encode() + b"\n")
            if self._show == "lines" and time.perf_counter() - self._shown >= LINE_SECONDS:
                self._shown = time.perf_counter()
                print(self._sentence(), file=sys.stderr, flush=True)

    def _sentence(self) -> str:
        left = self._eta()
        eta = "" if left is None else f", {tqdm.format_interval(left)} left"
        share = self._done / max(1, self._total)
        done = f"{tqdm.format_sizeof(self._done, 'B')} of {tqdm.format_sizeof(self._total, 'B')} ({share:.0%})"
        return f"{self.phase}: {done}, {self.rows} rows, {self.tokens / self.seconds:.0f} tokens/s{eta}"

    def _eta(self) -> float | None:
        done = self._done - self._done_before
        return max(0, self._total - self._done) * self.seconds / done if done > 0 else None

    def _fields(self) -> dict[str, Any]:
        eta = self._eta()
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "process": self._process,
            "phase": self.phase,
            "bytes": self._done,
            "bytes_left": max(0, self._total - self._done),
            "parts": self.parts,
            "rows": self.rows,
            "rejected": self.rejected,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "padding_share": round(1 - self.tokens / self.computed_tokens, 4) if self.computed_tokens else None,
            "eta_seconds": None if eta is None else round(eta, 1),
        }
