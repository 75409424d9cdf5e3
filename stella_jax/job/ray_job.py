"""A job whose parts are done by the actors of a Ray cluster; the driver loads no model and takes no accelerator."""

from collections.abc import Sequence

from stella_jax.embedder import Stella
from stella_jax.job.job import load_job, open_job
from stella_jax.job.manifest import close_job
from stella_jax.job.progress import Counts, Progress, Summary
from stella_jax.job.ray_cluster import connected
from stella_jax.job.ray_pool import run_on_ray
from stella_jax.job.request import Request
from stella_jax.job.run import full_disk_told
from stella_jax.job.settings import check_same, fingerprint_of
from stella_jax.job.stop import Stop
from stella_jax.job.store import open_store
from stella_jax.job.worker import Worker

# Parts that an actor gets at a time: several, so that batches cross them, but few enough that all end together.
MOST_PARTS = 8
CHUNKS_LEFT = 4


class Planner:
    """Plans the job in an actor, for only there the platform is known; its one part is that."""

    def __init__(self, request: Request):
        self._request = request
        self._model = request.load()

    def run(self, parts: Sequence[int]) -> Counts:
        settings = self._request.settings(self._model)
        fingerprint = fingerprint_of(self._model, settings)
        store = open_store(self._request.out)
        with full_disk_told(store), Progress(store) as progress:
            open_job(store, self._request.inputs, settings, fingerprint, self._request.max_rejected, progress)
        return Counts()


class PartRunner:
    """Embeds parts in an actor."""

    def __init__(self, request: Request):
        self._model: Stella = request.load()
        self._job = load_job(open_store(request.out), request.inputs)
        settings = request.settings(self._model)
        inputs = {"inputs": self._job.fingerprint["inputs"]}
        check_same(self._job.store, self._job.fingerprint, fingerprint_of(self._model, settings) | inputs)
        self._worker = Worker(self._model, self._job, request.max_rejected)

    def run(self, parts: Sequence[int]) -> Counts:
        with full_disk_told(self._job.store), Progress(self._job.store) as progress:
            self._worker.run([self._job.parts[number] for number in parts], progress, Stop(0))
        return progress.counts


def run_ray_job(request: Request, stop: Stop, shown: bool, address: str | None = None) -> Summary:
    """`run_job` by the actors of the Ray cluster at `address` (None: the one around, or one of this machine).

    Raises:
      StellaError: as `run_job`; or the cluster cannot be used.
      Stopped: it was asked to stop; finished parts are kept.
    """
    request = request.absolute()
    store = open_store(request.out)
    with full_disk_told(store), connected(address), Progress(store, shown=shown) as progress:
        run_on_ray(lambda: Planner(request), [0], chunk=lambda *_: 1, report=lambda _: None, stop=lambda: stop.asked)
        job = load_job(store, request.inputs)
        missing = [part.number for part in job.missing()]
        progress.journal()
        progress.begin(job.plan.rows, job.plan.rows - job.plan.rows_of(missing))
        with stop.patience():
            run_on_ray(
                lambda: PartRunner(request),
                missing,
                chunk=_chunk,
                report=progress.done_elsewhere,
                stop=lambda: stop.asked,
                grace=stop.grace,
            )
        return progress.end(close_job(job, request.origin, request.max_rejected))


def _chunk(missing: int, actors: int) -> int:
    return min(MOST_PARTS, max(1, missing // max(1, CHUNKS_LEFT * actors)))
