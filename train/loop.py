"""A training run, from its recipe to the exported model, in order of execution.

A step depends on the recipe, the rows and its number only. So a run that was interrupted and is started again resumes
from its newest checkpoint and gives the same bits as an uninterrupted run.

On several hosts (`train.hosts`) all processes run this code; process 0 broadcasts what they must agree on.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from stella_jax.checkpoint import Checkpoint
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError
from stella_jax.fingerprint import fingerprint
from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.hub import resolve
from stella_jax.lora import LoraConfig, kernels, with_lora
from stella_jax.model_spec import ModelSpec
from stella_jax.storage.new_directory import check_destination
from train import checks, optimizers
from train.batches import Batch, Batcher
from train.checkpoints import Checkpoints, newest_record, read_newest, read_state, steps_of
from train.curves import missing_plot_library
from train.data import Dataset, text_names
from train.evaluation import Evaluation, Named, combined, primary, primary_name
from train.export import Origin, Trained, export, is_exported
from train.guide import open_guide
from train.hosts import Hosts
from train.identity import changes, check_same, identity, versions
from train.log_writers import check_log, open_log
from train.loss_lookup import find_loss, loss_spec
from train.metrics import Metrics
from train.named_evaluators import identity_of, prompts_of, read_evaluator
from train.new_head import with_new_head
from train.plans import BatchPlan, Plan, one_pass
from train.recipe import COLUMNS, LoraSection, Recipe
from train.reporter import Reporter
from train.sets import needs_of, read_sets
from train.step import State, Step, StepConfig

EXPORT = "export"

SAMPLED_BATCHES = 100  # of each set's first pass, to choose the shapes from

Warn = Callable[[str], object]


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
    with _alone(check_destination(recipe.output), hosts):
        primary = hosts.is_primary
        run = Run(recipe, stop, show_progress and primary, warn if primary else lambda sentence: None)
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
        self._read_data()
        self._load_model()
        self._resume()

    # Before the first step

    def _read_data(self) -> None:
        """Reads the rows of each split and plans the batches."""
        data, loop, loss = self.recipe.data, self.recipe.loop, self.recipe.loss
        self._needs = needs_of(loss.name, loss_spec(loss), data.columns)
        self.data = read_sets(data, self._needs)
        self.evaluators = {each.name: read_evaluator(each) for each in self.recipe.evaluators}
        weights = [each.weight for each in data.sets_of("train")]
        trained = [each for each, weight in zip(self.data["train"], weights, strict=True) if weight]
        for dataset in trained:
            checks.check_data(self.recipe, dataset)
        order = (loop.batch_size, data.batch_sampler, self.recipe.seed)
        self.plan = BatchPlan(
            self.data["train"],
            *order,
            loop.epochs,
            data.drop_last,
            loop.max_steps,
            weights=weights,
            batches=data.batches,
        )
        self._first_passes = [(each, one_pass(each, *order, 0, data.drop_last)) for each in trained]

    def _load_model(self) -> None:
        """Loads the checkpoint and makes the step and the evaluation."""
        recipe, loop = self.recipe, self.recipe.loop
        loss = find_loss(recipe.loss)
        base = Checkpoint.open(resolve(recipe.model, recipe.revision))
        base.check_embeds("train an embedding model")
        self.base = with_new_head(base, recipe.new_head, recipe.seed) if recipe.new_head else base
        for dataset, batches in self._first_passes:
            for sentence in checks.warnings_for(recipe, dataset, batches, base.spec.normalize):
                self.warn(sentence)
        if sentence := missing_plot_library():
            self.warn(sentence)
        self.head = self.base.spec.head(recipe.dim)
        mesh = self.hosts.mesh(loop.mesh)
        model = self.base.load_model([self.head], mesh, dtype=loop.dtype, fsdp=loop.fsdp)
        model, may_train = _with_adapters(model, recipe.lora, recipe.seed)
        self._make_batcher(mesh)
        guide = self._load_guide(mesh)
        found = optimizers.from_recipe(recipe.optimizer, may_train, self.plan.steps)
        checks.check_learning_rates(np.asarray(jax.vmap(found.learning_rate)(np.arange(self.plan.steps))))
        self.lora: LoraConfig | None = model.encoder.lora
        self.step = Step(
            model,
            loss,
            found.transformation,
            StepConfig(recipe.seed, loop.dropout, loop.remat),
            trainable=found.trainable,
            learning_rate=found.learning_rate,
            guide=guide,
            loss_name=recipe.loss.name,
        )
        for dataset, batches in self._first_passes:
            self.step.check(self.batcher(*dataset.take(min(batches, key=len))))
        place = (self._tokenizer, self.base.spec.config.pad_token_id, self.hosts.local_mesh(mesh))
        self.evaluation = Evaluation(model, *place, self._prompts, loss, loop.batch_size, self._needs, guide)
        self.state: State = self.step.init(model.params())

    def _make_batcher(self, mesh: Mesh) -> None:
        """Makes the batcher, its shapes chosen from batches of the first pass of each set."""
        recipe, spec = self.recipe, self.base.spec
        self._tokenizer = self.base.tokenizer(recipe.data.max_length)
        given = {column: _prompt(spec, recipe.data.prompts.get(column, "")) for column in COLUMNS}
        names = text_names(max(len(each.texts) for sets in self.data.values() for each in sets))
        self._prompts = {name: given.get(name, given["negative"]) for name in names}
        self._named: dict[str, list[Named]] = {"eval": [], "test": []}
        for each in recipe.evaluators:
            prompts = {key: _prompt(spec, text) for key, text in prompts_of(each, recipe.data.prompts).items()}
            self._named[each.split].append(Named(each.name, self.evaluators[each.name], prompts))
        self.batcher = Batcher(
            self._tokenizer,
            spec.config.pad_token_id,
            recipe.loop.batch_size,
            prompts=list(self._prompts.values()),
            devices=mesh.shape["data"],
            parts=_parts(recipe),
        )
        sample = [texts for each, batches in self._first_passes for texts in self._sample(each, batches)]
        self.batcher.fit(sample, all_seen=len(self._first_passes) == 1 and len(sample) == self.plan.steps)

    def _load_guide(self, mesh: Mesh) -> EmbeddingModel | None:
        """Loads the loss's guide, if the recipe names one; its fingerprint is part of the run's identity."""
        self._guide: dict[str, Any] = {}
        if not (name := self.recipe.loss.guide):
            return None
        guide = open_guide(name, self.base, self._tokenizer.max_length)
        head = guide.spec.head(None)
        self._guide = {"guide": fingerprint(guide, [head])}
        return guide.load_model([head], mesh, dtype=self.recipe.loop.dtype)

    def _sample(self, dataset: Dataset, batches: Plan) -> list[list[list[str]]]:
        order = np.random.default_rng(self.recipe.seed).permutation(len(batches))[:SAMPLED_BATCHES]
        return [dataset.take(batches[i])[0] for i in order]

    def _batch(self, step: int) -> Batch:
        place, rows = self.plan.batch(step)
        return self.batcher(*self.data["train"][place].take(rows))

    def _resume(self) -> None:
        """Restores the newest valid checkpoint, if there is one, and opens the metrics."""
        own = {each.name: identity_of(each, self.evaluators[each.name]) for each in self.recipe.evaluators}
        found = identity(self.recipe, self.data, fingerprint(self.base, [self.head]))
        self.identity = found | self._guide | {"evaluators": own}
        record = self.hosts.broadcast(newest_record(self.output) if self.hosts.is_primary else None)
        if record:
            check_same(record["identity"], self.identity, self.output)
            for change in changes(record["versions"]):
                self.warn(f"{change} since the run started; its bits may differ from those of an uninterrupted run.")
        self._read_state()
        self.resumed = self.done = int(self.state.step)
        log = self.recipe.loop.log if self.hosts.is_primary else ()
        writers = open_log(log, self.output, self.done, self.recipe.as_dict())
        self.metrics = Metrics(self.output, self.done, self.hosts.is_primary, writers)
        self.metrics.lines = self.hosts.broadcast(self.metrics.lines)

    def _read_state(self) -> None:
        if self.hosts.is_primary:
            self._restore(read_newest(self.output, self.step.trained(self.state), self.warn))
        newest = self.hosts.broadcast(int(self.state.step))
        if newest and not self.hosts.is_primary:
            if newest not in steps_of(self.output):
                raise _not_shared(self.output, f"the checkpoint of step {newest}")
            self._read_step(newest)

    def _read_step(self, step: int) -> None:
        self._restore(read_state(self.output, step, self.step.trained(self.state)))

    def _restore(self, saved: State | None) -> None:
        """Replaces the trained parameters and the optimizer state with saved ones."""
        if saved:
            self.state = saved._replace(params=self.state.params | saved.params)

    # Steps, and between them evaluations and checkpoints

    def train(self) -> None:
        """Makes all remaining steps."""
        self.checkpoints = Checkpoints(self.output, self.recipe.loop.keep, self.done)
        self.reporter = Reporter(self.metrics, self._check, self.plan.steps, self.done, self.show_progress)
        try:
            self._train()
        except _Pause:
            self._save()
        finally:
            self.reporter.close()
            self.checkpoints.close()
        if self.hosts.any_process(self.stop.requested, self.step.mesh):
            self._stop()

    def _train(self) -> None:
        updates = checks.UpdateCheck(self.state.params)
        while True:
            if self._is_due("eval"):
                self._evaluate("eval")
            if self.done == 0:
                self._evaluate("test")
            ended = self.done == self.plan.steps or self._is_enough()
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
        every, wanted = (loop.save_every, True) if what == "save" else (loop.eval_every, self._is_evaluated("eval"))
        return wanted and self.plan.due(every, self.done)

    def _is_evaluated(self, split: str) -> bool:
        return split in self.data or bool(self._named[split])

    def _step(self) -> None:
        batch = self._batch(self.done)
        self.state, found = self.step(self.state, batch)
        self.done += 1
        self.reporter.add(self.done, self.plan.epochs(self.done), batch.tokens, found)

    def _evaluate(self, split: str) -> None:
        """Evaluates a split, unless it does not exist or metrics.jsonl has this evaluation already."""
        self.reporter.flush()
        if self._is_evaluated(split) and self.metrics.evaluation(split, self.done) is None:
            tick = self._pause if self.hosts.count == 1 else lambda: None  # several hosts stop only between steps
            found = {each.name: self.evaluation(self.state.params, each, tick) for each in self.data.get(split, ())}
            scores = combined(found) if found else {}
            scores |= self.evaluation.named(self.state.params, self._named[split], tick)
            scores = self.hosts.broadcast(scores)
            if split == "eval":
                primary_name(scores, self._best)
            self.metrics.write({"step": self.done, "epoch": round(self.plan.epochs(self.done), 6), split: scores})
        self.reporter.resume()

    def _save(self) -> None:
        """Starts saving the state, unless it is the first; raises if the last step's metrics are not finite."""
        self.reporter.flush()
        if self.done:
            epoch, batch = self.plan.position(self.done)
            plan = {"step": self.done, "epoch": epoch, "batch": batch}
            record = plan | {"identity": self.identity, "recipe": self.recipe.as_dict(), "versions": versions()}
            scores = self.metrics.evaluation("eval", self.done)
            self.checkpoints.save(
                self.step.trained(self.state), record, primary(scores, self._best) if scores else None
            )
        self.reporter.resume()

    def _check(self, step: int, found: Mapping[str, float]) -> None:
        checks.check_finite(self.checkpoints.newest, step, found)

    def _pause(self) -> None:
        requested = self.hosts.any_process(self.stop.requested, self.step.mesh)
        if self.hosts.count > 1:  # read one step later, so as not to wait for the answer
            self._stop_requested, requested = requested, self._stop_requested
        if requested:
            raise _Pause

    def _stop(self) -> None:
        """Ends this process as if the stop had been requested from it."""
        if not self.stop.requested:
            self.stop.request()
        self.hosts.shutdown()

    @property
    def _best(self) -> str | None:
        """The score that evaluations are compared by, if the recipe or its evaluators choose it."""
        if self.recipe.loop.best or "eval" in self.data or not self._named["eval"]:
            return self.recipe.loop.best
        name, evaluator, _ = self._named["eval"][0]
        return f"{name}/{evaluator.best}"

    def _is_enough(self) -> bool:
        """Whether the last `early_stop` evaluations brought no better score."""
        scores = [primary(line["eval"], self._best) for line in self.metrics.evaluations("eval") if line["step"]]
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
        return max(lines, key=lambda line: (primary(line["eval"], self._best), -line["step"]))["step"]

    def _export(self, destination: Path) -> bool:
        """Exports the model; returns False if that was already done, or another process does it."""
        origin = Origin(self.recipe, self.identity, self.data, self.done)
        names = {*self.step.trainable, *(kernels(self.lora) if self.lora else ())}
        params = {name: self.hosts.fetch(self.state.params[name]) for name in sorted(names)}
        if not self.hosts.is_primary or is_exported(destination, origin):
            return False
        export(Trained(self.base, self.head, params, self.lora), origin, self.metrics, destination)
        return True

    def _summary(self, trained: int, destination: Path, written: bool) -> str:
        steps = f"{trained} steps"
        what = f"{steps}, {trained - self.resumed} of them since the run was resumed" if self.resumed else steps
        for split in ("eval", "test"):
            before, after = (self.metrics.evaluation(split, step) for step in (0, self.done))
            if before and after:
                key = primary_name(after, self._best if self._best in after else None)
                what += f"; {split} {key} {before[key]:.4f} before and {after[key]:.4f} after"
        return f"{what}; the model {'is' if written else 'was already'} in {destination}"


class _Pause(Exception):
    """Between two steps: save the state and end."""


def _parts(recipe: Recipe) -> int:
    loop, mini_batch = recipe.loop, recipe.loss.mini_batch
    return -(-loop.batch_size // mini_batch) if mini_batch else loop.gradient_accumulation_steps


def _with_adapters(
    model: EmbeddingModel, lora: LoraSection | None, seed: int
) -> tuple[EmbeddingModel, dict[str, jax.Array]]:
    """The model to train, and its trainable parameters: all, or those of the adapters and perhaps the head."""
    if lora is None:
        return model, model.params()
    model = with_lora(model, lora.rank, lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed)
    names = [*model.trainable, *(name for name in model.params() if lora.head and name.startswith("head/"))]
    return model, {name: model.params()[name] for name in names}


def _prompt(spec: ModelSpec, given: str) -> str:
    """The text of a prompt; `given` is its name, or the text itself if it contains a space."""
    return given if not given or any(c.isspace() for c in given) else spec.prompt(given)


def _not_shared(output: Path, what: str) -> StellaError:
    return StellaError(
        f"{output}: process 0 sees {what} and this host does not; put the output on storage that all hosts share."
    )


@contextmanager
def _alone(output: Path, hosts: Hosts) -> Iterator[None]:
    """Creates the run's directory, which process 0 locks while it runs.

    Raises:
      StellaError: another run is training in it, or this process does not see it.
    """
    if hosts.is_primary:
        with _locked(output):
            hosts.barrier()
            yield
    else:
        hosts.barrier()
        if not output.is_dir():
            raise _not_shared(output, "the directory")
        yield


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StellaError(f"{output}: another process is training in it; wait for it or use another output.") from None
    finally:
        os.close(descriptor)
