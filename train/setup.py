"""What a run reads and loads before its first step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.fingerprint import fingerprint
from stella_jax.checkpoint.hub import resolve
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError
from stella_jax.lora import with_lora
from stella_jax.lora_config import LoraConfig
from stella_jax.models import architecture_of
from train import checks, optimizers
from train.batches import Batcher, TrainBatch
from train.data import Dataset, text_names
from train.evaluation import Evaluation, Named
from train.guide import open_guide
from train.hosts import Hosts
from train.identity import identity
from train.loss_lookup import find_loss, loss_spec
from train.losses import Loss
from train.new_head import with_new_head
from train.plans import BatchPlan, Plan, one_pass
from train.recipe import Recipe
from train.recipe_evaluators import identity_of, prompts_of, read_evaluator
from train.sections import COLUMNS, LoraSection
from train.sets import needs_of, read_sets
from train.step import State, Step, StepConfig

SAMPLED_BATCHES = 100  # of each set's first pass, to choose the shapes from

Warn = Callable[[str], object]


class Setup:
    """The parts of a run, read, checked and loaded from its recipe.

    Attributes:
      data: the sets of rows of each split that has any.
      plan: the batches of all steps.
      base: the checkpoint before training, with the new head if there is one.
      head: the head to train through.
      lora: configuration of the adapters, if any.
      step: the training step.
      evaluation: evaluates sets of rows and evaluators.
      named: the recipe's evaluators for "eval" and "test".
      identity: see `identity.identity`; also of the guide and the evaluators.

    Args:
      recipe: the recipe.
      hosts: the processes that train together.
      warn: called with a sentence for each setting that is valid but may be a mistake.

    Raises:
      StellaError: recipe, rows or checkpoint are not valid.
    """

    def __init__(self, recipe: Recipe, hosts: Hosts, warn: Warn):
        self.recipe, self._hosts, self._warn = recipe, hosts, warn
        self._read_data()
        self._load_model()
        own = {each.name: identity_of(each, self.evaluators[each.name]) for each in recipe.evaluators}
        found = identity(recipe, self.data, fingerprint(self.base, [self.head]))
        self.identity = found | self._guide | {"evaluators": own}

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
                self._warn(sentence)
        self.head = self.base.spec.head(recipe.dim)
        mesh = self._hosts.mesh(loop.mesh)
        model = self.base.load_model([self.head], mesh, dtype=loop.dtype, fsdp=loop.fsdp)
        model, may_train = _with_adapters(model, recipe.lora, recipe.seed)
        self._make_batcher(mesh)
        guide = self._load_guide(mesh)
        self.lora: LoraConfig | None = model.encoder.lora
        self.step = self._make_step(model, loss, may_train, guide)
        for dataset, batches in self._first_passes:
            self.step.check(self.batcher(*dataset.take(min(batches, key=len))))
        encoding = (self._tokenizer, self.base.spec.config.pad_token_id, self._hosts.local_mesh(mesh))
        self.evaluation = Evaluation(model, *encoding, self._prompts, loss, loop.batch_size, self._needs, guide)
        self._params = model.params()

    def _make_step(
        self, model: EmbeddingModel, loss: Loss, may_train: dict[str, jax.Array], guide: EmbeddingModel | None
    ) -> Step:
        """The step of the recipe's optimizer; checks its learning rates."""
        recipe, architecture = self.recipe, architecture_of(model.encoder.config)
        found = optimizers.from_recipe(recipe.optimizer, may_train, self.plan.steps, architecture)
        checks.check_learning_rates(np.asarray(jax.vmap(found.learning_rate)(np.arange(self.plan.steps))))
        return Step(
            model,
            loss,
            found.transformation,
            StepConfig(recipe.seed, recipe.loop.dropout, recipe.loop.remat),
            trainable=found.trainable,
            learning_rate=found.learning_rate,
            guide=guide,
            loss_name=recipe.loss.name,
        )

    def initial_state(self) -> State:
        """The state before the first step; to be called once, as the loaded parameters are then dropped."""
        params = self._params
        del self._params
        return self.step.init(params)

    def _make_batcher(self, mesh: Mesh) -> None:
        """Makes the batcher, its shapes chosen from batches of the first pass of each set."""
        recipe, spec = self.recipe, self.base.spec
        self._tokenizer = self.base.tokenizer(recipe.data.max_length)
        given = {column: _prompt(spec, recipe.data.prompts.get(column, "")) for column in COLUMNS}
        names = text_names(max(len(each.texts) for sets in self.data.values() for each in sets))
        self._prompts = {name: given.get(name, given["negative"]) for name in names}
        self.named: dict[str, list[Named]] = {"eval": [], "test": []}
        for each in recipe.evaluators:
            prompts = {key: _prompt(spec, text) for key, text in prompts_of(each, recipe.data.prompts).items()}
            self.named[each.split].append(Named(each.name, self.evaluators[each.name], prompts))
            for prompt in prompts.values():
                self._tokenizer.check_prompt(prompt)
        self.batcher = Batcher(
            self._tokenizer,
            spec.config.pad_token_id,
            recipe.loop.batch_size,
            prompts=list(self._prompts.values()),
            devices=mesh.shape["data"],
            micro_batches=_micro_batches(recipe),
        )
        sample = [texts for each, batches in self._first_passes for texts in self._sample(each, batches)]
        self.batcher.fit(sample, all_seen=len(self._first_passes) == 1 and len(sample) == self.plan.steps)

    def _load_guide(self, mesh: Mesh) -> EmbeddingModel | None:
        """Loads the loss's guide, if the recipe names one."""
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

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step, counted from 0."""
        set_index, rows = self.plan.batch(step)
        return self.batcher(*self.data["train"][set_index].take(rows))

    def is_evaluated(self, split: str) -> bool:
        """Whether there is anything to evaluate."""
        return split in self.data or bool(self.named[split])

    @property
    def best(self) -> str | None:
        """The score that evaluations are compared by, if the recipe or its evaluators choose it."""
        if self.recipe.loop.best or "eval" in self.data or not self.named["eval"]:
            return self.recipe.loop.best
        name, evaluator, _ = self.named["eval"][0]
        return f"{name}/{evaluator.best}"


def _micro_batches(recipe: Recipe) -> int:
    loop, mini_batch = recipe.loop, recipe.loss.mini_batch
    return -(-loop.batch_size // mini_batch) if mini_batch else loop.gradient_accumulation_steps


def _with_adapters(
    model: EmbeddingModel, lora: LoraSection | None, seed: int
) -> tuple[EmbeddingModel, dict[str, jax.Array]]:
    """The model to train, and its trainable parameters: all, or those of the adapters and perhaps the head."""
    if lora is None:
        return model, model.params()
    try:
        model = with_lora(model, lora.rank, lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed)
    except StellaError as error:  # it starts with the argument's name, the same as the key's
        raise StellaError(f"lora.{error}") from error
    names = [*model.trainable, *(name for name in model.params() if lora.head and name.startswith("head/"))]
    return model, {name: model.params()[name] for name in names}


def _prompt(spec: ModelSpec, given: str) -> str:
    """The text of a prompt; `given` is its name, or the text itself if it contains a space."""
    return given if not given or any(c.isspace() for c in given) else spec.prompt(given)
