"""What a person sees of a running job, and the numbers it ends with."""

import time
from dataclasses import dataclass

from tqdm import tqdm

from stella_jax.batching import Batch


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run: rows and tokens embedded by it, of a job that holds `job_rows` and has set `job_rejected` aside."""

    rows: int
    tokens: int
    seconds: float
    job_rows: int
    job_rejected: int

    def __str__(self) -> str:
        held = f"{self.job_rows} rows embedded, {self.job_rejected} rejected"
        if not self.rows:
            return f"{held}; nothing was left to do"
        now = f"{self.tokens} tokens in {self.seconds:.1f} s ({self.rows / self.seconds:.1f} texts/s, "
        before = f"; {self.job_rows - self.rows} of the rows by earlier runs" if self.rows < self.job_rows else ""
        return f"{held}; {now}{self.tokens / self.seconds:.0f} tokens/s{before})"


class Progress:
    """A bar over a job's rows with texts/s and tokens/s, and the counts behind it.

    Args:
      total: rows of the job.
      done: those that earlier runs have dealt with.
      shown: whether there is a bar; the counts are kept all the same.
    """

    def __init__(self, total: int, done: int, shown: bool):
        self._bar = tqdm(total=total, initial=done, unit=" texts", disable=not shown, dynamic_ncols=True)
        self._begin = time.perf_counter()
        self.rows = 0
        self.tokens = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def embedded(self, batch: Batch) -> None:
        """A batch is done."""
        self.tokens += batch.tokens
        self.rows += len(batch.texts)
        self._bar.set_postfix_str(f"{self.tokens / self.seconds:.0f} tokens/s", refresh=False)
        self._bar.update(len(batch.texts))

    def rejected(self, rows: int) -> None:
        """These rows are set aside before the encoder."""
        self._bar.update(rows)

    def summary(self, totals: dict[str, int]) -> Summary:
        """The counts of this run beside the totals of the job."""
        return Summary(self.rows, self.tokens, self.seconds, totals["rows"], totals["rejected"])

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()
