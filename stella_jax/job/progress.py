"""What a running job tells: a bar and a last line to people, progress.jsonl to programs and to the other processes."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

from stella_jax.batching import Batch
from stella_jax.errors import StellaError
from stella_jax.job.store import Store

BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run of one process: what it embedded, and what the job holds, where that is known.

    Attributes:
      rows: embedded by this run, as are `tokens`; `computed` counts padding too.
      job_rows: rows that the complete job holds; None in other processes than the one that closed it.
      job_rejected: rows that it has set aside.
    """

    rows: int
    tokens: int
    computed: int
    seconds: float
    job_rows: int | None
    job_rejected: int | None

    def __str__(self) -> str:
        now = f"{self.tokens} tokens in {self.seconds:.1f} s ({self.rows / self.seconds:.1f} texts/s, "
        now += f"{self.tokens / self.seconds:.0f} tokens/s"
        if self.job_rows is None:
            return f"{self.rows} rows embedded by this process; {now})"
        held = f"{self.job_rows} rows embedded, {self.job_rejected} rejected"
        if not self.rows:
            return f"{held}; nothing was left to do"
        before = f"; {self.job_rows - self.rows} of the rows by other runs" if self.rows < self.job_rows else ""
        return f"{held}; {now}{before})"


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done: parts, rows and tokens embedded, tokens computed with padding, rows set aside before."""

    parts: int = 0
    rows: int = 0
    tokens: int = 0
    computed: int = 0
    set_aside: int = 0


def journal_name(process: int) -> str:
    return f"progress-{process}.jsonl" if process else "progress.jsonl"


class Progress:
    """The counts of one process, and whom they are told.

    Args:
      store: where the journal goes, once `journal` is called.
      process: its number among those of the job.
      shown: whether there is a bar on stderr.
    """

    def __init__(self, store: Store, process: int = 0, shown: bool = False):
        self.rows = self.tokens = self.computed = self.parts = self.set_aside = 0
        self._store = store
        self._process = process
        self._shown = shown
        self._bar = tqdm(desc="reading", unit=" rows", disable=not shown, leave=False)
        self._begin = time.perf_counter()
        self._total = self._passed = 0
        self._open: list[str] = []
        self._phase = "planning"
        self._journal = False
        self._written = float("-inf")
        self._lock = threading.Lock()  # parts are opened by the thread that reads them

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        self._bar.close()
        if kind is not None:
            self._last_line("stopped")

    @property
    def counts(self) -> Counts:
        return Counts(self.parts, self.rows, self.tokens, self.computed, self.set_aside)

    @property
    def seconds(self) -> float:
        """Since `begin`."""
        return time.perf_counter() - self._begin

    def journal(self) -> None:
        """Begins to write lines into the job's folder, which is there."""
        self._journal = True
        self._line(0)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A block that cannot tell of itself, as what loads or hashes a model: a thread has the journal grow."""
        ended, before = threading.Event(), self._phase

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                self._line(self._store.journal_seconds)

        thread = threading.Thread(target=beat, daemon=True)
        self._phase = "loading"
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._phase = before

    def tick(self, rows: int = 1) -> None:
        """So many rows have been read; none, but the process is alive."""
        self._bar.update(rows)
        self._line(self._store.journal_seconds)

    def begin(self, total: int, done: int, phase: str = "embedding") -> None:
        """From here on parts are embedded: of `total` rows, `done` are there already."""
        self._bar.close()
        self._bar = tqdm(total=total, initial=done, unit=" texts", disable=not self._shown, dynamic_ncols=True)
        self._total, self._passed, self._phase = total, done, phase
        self._begin = time.perf_counter()
        self._line(0)

    def more(self, rows: int) -> None:
        """So many rows beyond the share are taken over from others."""
        self._total = self._passed + rows
        self._phase = "embedding"

    def opened(self, part: str) -> None:
        """A part is being read."""
        with self._lock:
            self._open.append(part)
        self._line(self._store.journal_seconds / 5)

    def embedded(self, batch: Batch) -> None:
        """A batch is done."""
        self.tokens += batch.tokens
        self.computed += batch.rows * batch.length
        self.rows += len(batch.texts)
        self._bar.set_postfix_str(f"{self.tokens / self.seconds:.0f} tokens/s", refresh=False)
        self._pass(len(batch.texts))
        self._line(self._store.journal_seconds)

    def rejected(self, rows: int) -> None:
        """These rows are set aside before the encoder."""
        self.set_aside += rows
        self._pass(rows)

    def committed(self, part: str) -> None:
        """A part is finished."""
        self.parts += 1
        with self._lock:
            self._open.remove(part)
        self._line(self._store.journal_seconds / 5)

    def done_elsewhere(self, other: "Counts") -> None:
        """Another process, which has no journal, did this."""
        self.parts += other.parts
        self.tokens += other.tokens
        self.computed += other.computed
        self.rows += other.rows
        self.set_aside += other.set_aside
        self._pass(other.rows + other.set_aside)
        self._line(self._store.journal_seconds / 5)

    def waiting(self) -> None:
        """Others work, this process has nothing to do."""
        self._phase = "waiting"
        self._line(self._store.journal_seconds)

    def end(self, totals: dict[str, int] | None) -> Summary:
        """Ends the journal; the counts of this run beside the totals of the job, where they are known."""
        self._passed = self._total if totals else self._passed  # what a dead actor did was not told
        self._last_line("done")
        job = (totals["rows"], totals["rejected"]) if totals else (None, None)
        return Summary(self.rows, self.tokens, self.computed, self.seconds, *job)

    def _last_line(self, phase: str) -> None:
        self._phase = phase
        self._open.clear()
        self._line(0)

    def _pass(self, rows: int) -> None:
        self._passed += rows
        self._bar.update(rows)

    def _line(self, least_seconds: float) -> None:
        """Writes a line, if there was none for so long."""
        with self._lock:
            now = time.monotonic()
            if self._journal and now - self._written >= least_seconds:
                self._written = now
                # A line that is lost is no reason to lose the job.
                with suppress(OSError, StellaError):
                    self._store.append(journal_name(self._process), json.dumps(self._fields()).encode() + b"\n")

    def _fields(self) -> dict[str, Any]:
        rate = self._passed and self.rows / self.seconds
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "process": self._process,
            "phase": self._phase,
            "open": self._open,
            "parts": self.parts,
            "rows": self.rows,
            "rows_left": max(0, self._total - self._passed),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "padding_share": round(1 - self.tokens / self.computed, 4) if self.computed else None,
            "eta_seconds": round(max(0, self._total - self._passed) / rate, 1) if rate else None,
        }
