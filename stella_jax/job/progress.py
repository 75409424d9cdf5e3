"""What a running job tells: a bar or a line a minute on stderr to people, `_job/progress*.jsonl` to programs."""

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

LINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run of one process: what it embedded, and what the job holds, where that is known.

    Attributes:
      rows: embedded by this run, as are `tokens`; `computed` counts padding too.
      job_rows: rows that the complete job holds; None in other processes than the one that closed it.
      job_rejected: rows that it has set aside.
      verb: what was done to the rows.
    """

    rows: int
    tokens: int
    computed: int
    seconds: float
    job_rows: int | None
    job_rejected: int | None
    verb: str = "embedded"

    def __str__(self) -> str:
        now = f"{self.tokens} tokens in {self.seconds:.1f} s ({self.rows / self.seconds:.1f} texts/s, "
        now += f"{self.tokens / self.seconds:.0f} tokens/s"
        if self.job_rows is None:
            return f"{self.rows} rows {self.verb} by this process; {now})"
        held = f"{self.job_rows} rows {self.verb}, {self.job_rejected} rejected"
        if not self.rows:
            return f"{held}; nothing was left to do"
        before = f"; {self.job_rows - self.rows} of the rows by other runs" if self.rows < self.job_rows else ""
        return f"{held}; {now}{before})"


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done: bytes of inputs, parts, rows and tokens embedded, tokens computed with padding, rows rejected."""

    bytes: int = 0
    parts: int = 0
    rows: int = 0
    tokens: int = 0
    computed: int = 0
    rejected: int = 0

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


def progress_name(process: int) -> str:
    return f"_job/progress-{process}.jsonl" if process else "_job/progress.jsonl"


class Progress:
    """The counts of one process, and how they are shown.

    Args:
      store: where the progress file goes, once `begin` is called.
      process: its number among those of the job.
      show: a bar on stderr, or a line there each minute.
      verb: what is done to the rows.
    """

    def __init__(self, store: Store, process: int = 0, show: Show = "nothing", verb: str = "embedded"):
        self.parts = self.rows = self.tokens = self.computed = self.rejected = 0
        self._store = store
        self._process = process
        self._show = show
        self._verb = verb
        self._bar = tqdm(unit="B", unit_scale=True, disable=show != "bar", dynamic_ncols=True)
        self._begun = self._shown = time.perf_counter()
        self._total = self._done_before = self._done = 0
        self._splits: dict[int, int] = {}  # bytes done of those that are not finished
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
        return Counts(done, self.parts, self.rows, self.tokens, self.computed, self.rejected)

    @property
    def seconds(self) -> float:
        """Since `begin`."""
        return time.perf_counter() - self._begun

    def begin(self, total: int, done: int) -> None:
        """Starts the clock and the progress file: of `total` bytes, `done` are embedded already."""
        self._total, self._done, self._done_before = total, done, done
        self._bar.reset(total)
        self._bar.update(done)
        self._begun = self._shown = time.perf_counter()
        self.phase, self._writes = "embedding", True
        self._line(0)

    def add_work(self, size: int) -> None:
        """So many bytes are taken over from other processes."""
        self._total += size
        self._bar.total = self._total
        self.phase = "embedding"

    def embedded(self, batch: Batch) -> None:
        """A batch is done."""
        self.tokens += batch.tokens
        self.computed += batch.rows * batch.length
        self.rows += len(batch.texts)
        self._bar.set_postfix_str(f"{self.rows} rows, {self.tokens / self.seconds:.0f} tokens/s", refresh=False)
        self._bar.update(0)
        self._line(self._store.log_interval)

    def committed(self, split: Split, read: int, rejected: int) -> None:
        """A part is committed, up to so many bytes of its split."""
        self.parts += 1
        self.rejected += rejected
        self._advance(max(0, read - self._splits.get(split.number, 0)))
        self._splits[split.number] = max(read, self._splits.get(split.number, 0))
        self._line(self._store.log_interval / 5)

    def done_elsewhere(self, other: Counts) -> None:
        """Another process, which has no progress file, did this."""
        self.parts += other.parts
        self.tokens += other.tokens
        self.computed += other.computed
        self.rows += other.rows
        self.rejected += other.rejected
        self._advance(other.bytes)
        self._line(self._store.log_interval / 5)

    def waiting(self) -> None:
        """Others work, this process has nothing to do."""
        self.phase = "waiting"
        self._line(self._store.log_interval)

    def closing(self) -> None:
        """Repeated ids are looked for, and the manifest is written."""
        self.phase = "closing"
        self._line(self._store.log_interval)

    def end(self, totals: dict[str, int] | None) -> Summary:
        """Ends the progress file; the counts of this run beside the totals of the job, where they are known."""
        self._last_line("done")
        job = (totals["rows"], totals["rejected"]) if totals else (None, None)
        return Summary(self.rows, self.tokens, self.computed, self.seconds, *job, self._verb)

    def _advance(self, size: int) -> None:
        self._done += size
        self._bar.update(size)

    def _last_line(self, phase: str) -> None:
        self.phase = phase
        self._line(0)

    def _line(self, least_seconds: float) -> None:
        """Writes a line, if there was none for so long."""
        with self._lock:
            now = time.monotonic()
            if self._writes and now - self._written >= least_seconds:
                self._written = now
                # A line that is lost is no reason to lose the job.
                with suppress(OSError, StellaError):
                    self._store.append(progress_name(self._process), json.dumps(self._fields()).encode() + b"\n")
            if self._show == "lines" and time.perf_counter() - self._shown >= LINE_SECONDS:
                self._shown = time.perf_counter()
                print(self._sentence(), file=sys.stderr, flush=True)

    def _sentence(self) -> str:
        left = self._eta()
        ends = "" if left is None else f", {tqdm.format_interval(left)} left"
        share = self._done / max(1, self._total)
        done = f"{tqdm.format_sizeof(self._done, 'B')} of {tqdm.format_sizeof(self._total, 'B')} ({share:.0%})"
        return f"{self.phase}: {done}, {self.rows} rows, {self.tokens / self.seconds:.0f} tokens/s{ends}"

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
            "padding_share": round(1 - self.tokens / self.computed, 4) if self.computed else None,
            "eta_seconds": None if eta is None else round(eta, 1),
        }
