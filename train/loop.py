"""A training run, from its recipe to the exported model, in order of execution.

A step depends on the recipe, the rows and its number only. So a run that was interrupted and is started again resumes
from its newest checkpoint and gives the same bits as an uninterrupted run.

On several hosts (`train.hosts`) all processes run this code; process 0 broadcasts what they must agree on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.lora import kernels
from stella_jax.storage.new_directory import check_destination
from train import checks
from train.checkpoints import Checkpoints, newest_record, read_newest, read_state, steps_of
from train.curves import missing_plot_library
from train.evaluation import combined, primary, primary_name
from train.export import Origin, Trained, export, is_exported
from train.hosts import Hosts
from train.identity import changes, check_same, versions
from train.log_writers import check_log, open_log
from train.metrics import MetricsLog
from train.output_directory import lock_output, not_shared
from train.recipe import Recipe
from train.reporter import Reporter
from train.setup import Setup, Warn
from train.step import State

EXPORT = "export"


def train(
    recipe: Recipe, stop: GracefulShutdown, show_progress: bool = False, warn: Warn = lambda sentence: None
) -> str:
    """Trains with a recipe, or resumes its run, and exports the model.

    Args:
      stop: requested when the run should save its state and end.
      show_progress: whether to show a bar on stderr.
      warn: called with a sentence for each setting that is valid but may be a mistake.

    Returns:
      A summary in one sentence.

    Raises:
      StellaError: recipe, rows, checkpoint or output are not valid, or the loss is NaN or infinite.
      Stopped: a stop was requested, and the state is saved.
    """
    hosts = Hosts()
    with lock_output(check_destination(recipe.output), hosts):
        is_primary = hosts.is_primary
        run = Run(recipe, stop, show_progress and is_primary, warn if is_primary else lambda sentence: None)
        with run.metrics:
            with stop.deferred():
                run.train()
            return run.finish()


class Run:
    """A run, ready for its next step: everything is read, checked and loaded."""

    def __init__(self, recipe: Recipe, stop: GracefulShutdown, show_progress: bool, warn: Warn):
        self.recipe, self.stop, self.show_progress, self.warn = recipe, stop, show_progress, warn
        self.hosts = Hosts()
        self.output = Path(recipe.output)
        self._stop_requested: Any = False
        check_log(recipe.loop.log)
        self.setup = Setup(recipe, self.hosts, warn)
        self.state = self.setup.initial_state()
        self._resume()
        if sentence := missing_plot_library():
            self.warn(sentence)

    def _resume(self) -> None:
        """Restores the newest valid checkpoint, if there is one, and opens the metrics."""
        record = self.hosts.broadcast(newest_record(self.output) if self.hosts.is_primary else None)
        if record:
            check_same(record["identity"], self.setup.identity, self.output)
            for change in changes(record["versions"]):
                self.warn(f"{change} since the run started; its bits may differ from those of an uninterrupted run.")
        self._read_state()
        self.resumed = self.done = int(self.state.step)
        log = self.recipe.loop.log if self.hosts.is_primary else ()
        writers = open_log(log, self.output, self.done, self.recipe.as_dict())
        self.metrics = MetricsLog(self.output, self.done, self.hosts.is_primary, writers)
        self.metrics.lines = self.hosts.broadcast(self.metrics.lines)

    def _read_state(self) -> None:
        if self.hosts.is_primary:
            self._restore(read_newest(self.output, self.setup.step.trained(self.state), self.warn))
        newest = self.hosts.broadcast(int(self.state.step))
        if newest and not self.hosts.is_primary:
            if newest not in steps_of(self.output):
                raise not_shared(self.output, f"the checkpoint of step {newest}")
            self._read_step(newest)

    def _read_step(self, step: int) -> None:
        self._restore(read_state(self.output, step, self.setup.step.trained(self.state)))

    def _restore(self, saved: State | None) -> None:
        """Replaces the trained parameters and the optimizer state with saved ones."""
        if saved:
            self.state = saved._replace(params=self.state.params | saved.params)

    # Steps, and between them evaluations and checkpoints

    def train(self) -> None:
        """Makes all remaining steps."""
        self.checkpoints = Checkpoints(self.output, self.recipe.loop.keep, self.done)
        self.reporter = Reporter(self.metrics, self._check, self.setup.plan.steps, self.done, self.show_progress)
        try:
            self._train()
        except _Pause:
            self._save()
        finally:
            self.reporter.close()
            self.checkpoints.close()
        if self.hosts.any_process(self.stop.requested, self.setup.step.mesh):
            self._stop()

    def _train(self) -> None:
        updates = checks.UpdateCheck(self.state.params)
        while True:
            if self._is_due("eval"):
                self._evaluate("eval")
            if self.done == 0:
                self._evaluate("test")
            ended = self.done == self.setup.plan.steps or self._is_enough()
            if ended or self._is_due("save") or self._is_due("eval"):  # eval too, so that the best can be kept
                self._save()
            if ended:
                return
            self._pause()
            self._step()
            if updates.is_open and (warning := updates.after(self.state.params, self.reporter.flush())):
                self.warn(warning)

    def _is_due(self, what: Literal["eval", "save"]) -> bool:
        loop = self.recipe.loop
        if what == "save":
            return self.setup.plan.due(loop.save_every, self.done)
        return self.setup.is_evaluated("eval") and self.setup.plan.due(loop.eval_every, self.done)

    def _step(self) -> None:
        batch = self.setup.batch(self.done)
        self.state, found = self.setup.step(self.state, batch)
        self.done += 1
        self.reporter.add(self.done, self.setup.plan.epochs(self.done), batch.tokens, found)

    def _evaluate(self, split: str) -> None:
        """Evaluates a split, unless it does not exist or metrics.jsonl has this evaluation already."""
        self.reporter.flush()
        if self.setup.is_evaluated(split) and self.metrics.evaluation(split, self.done) is None:
            tick = self._pause if self.hosts.count == 1 else lambda: None  # several hosts stop only between steps
            found = {
                each.name: self.setup.evaluation(self.state.params, each, tick)
                for each in self.setup.data.get(split, ())
            }
            scores = combined(found) if found else {}
            scores |= self.setup.evaluation.named(self.state.params, self.setup.named[split], tick)
            scores = self.hosts.broadcast(scores)
            if split == "eval":
                primary_name(scores, self.setup.best)
            self.metrics.write({"step": self.done, "epoch": round(self.setup.plan.epochs(self.done), 6), split: scores})
        self.reporter.resume()

    def _save(self) -> None:
        """Starts saving the state, unless it is the first; raises if the last step's metrics are not finite."""
        self.reporter.flush()
        if self.done:
            epoch, batch = self.setup.plan.position(self.done)
            plan = {"step": self.done, "epoch": epoch, "batch": batch}
            record = plan | {"identity": self.setup.identity, "recipe": self.recipe.as_dict(), "versions": versions()}
            scores = self.metrics.evaluation("eval", self.done)
            self.checkpoints.save(
                self.setup.step.trained(self.state), record, primary(scores, self.setup.best) if scores else None
            )
        self.reporter.resume()

    def _check(self, step: int, found: Mapping[str, float]) -> None:
        checks.check_metrics(self.checkpoints.newest, step, found)

    def _pause(self) -> None:
        requested = self.hosts.any_process(self.stop.requested, self.setup.step.mesh)
        if self.hosts.count > 1:  # read one step later, so as not to wait for the answer
            self._stop_requested, requested = requested, self._stop_requested
        if requested:
            raise _Pause

    def _stop(self) -> None:
        """Ends this process as if the stop had been requested from it."""
        if not self.stop.requested:
            self.stop.request()
        self.hosts.shutdown()

    def _is_enough(self) -> bool:
        """Whether the last `early_stop` evaluations brought no better score."""
        scores = [primary(line["eval"], self.setup.best) for line in self.metrics.evaluations("eval") if line["step"]]
        since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        return self.recipe.loop.early_stop is not None and since_best >= self.recipe.loop.early_stop

    # After the last step

    def finish(self) -> str:
        """Evaluates the test split and exports the model; returns a summary in one sentence."""
        trained = self.done
        if self.recipe.loop.export == "best":
            self.done = self._best_step()
            self._read_step(self.done)
        self._evaluate("test")
        destination = self.output / EXPORT
        written = self._export(destination)
        self.hosts.shutdown()
        return self._summary(trained, destination, written)

    def _best_step(self) -> int:
        lines = [line for line in self.metrics.evaluations("eval") if line["step"]]
        return max(lines, key=lambda line: (primary(line["eval"], self.setup.best), -line["step"]))["step"]

    def _export(self, destination: Path) -> bool:
        """Exports the model; returns False if that was already done, or another process does it."""
        origin = Origin(self.recipe, self.setup.identity, self.setup.data, self.done)
        names = {*self.setup.step.trainable, *(kernels(self.setup.lora) if self.setup.lora else ())}
        params = {name: self.hosts.fetch(self.state.params[name]) for name in sorted(names)}
        if not self.hosts.is_primary or is_exported(destination, origin):
            return False
        export(Trained(self.setup.base, self.setup.head, params, self.setup.lora), origin, self.metrics, destination)
        return True

    def _summary(self, trained: int, destination: Path, written: bool) -> str:
        steps = f"{trained} steps"
        what = f"{steps}, {trained - self.resumed} of them since the run was resumed" if self.resumed else steps
        for split in ("eval", "test"):
            before, after = (self.metrics.evaluation(split, step) for step in (0, self.done))
            if before and after:
                key = primary_name(after, self.setup.best if self.setup.best in after else None)
                what += f"; {split} {key} {before[key]:.4f} before and {after[key]:.4f} after"
        return f"{what}; the model {'is' if written else 'was already'} in {destination}"


class _Pause(Exception):
    """Between two steps: save the state and end."""
