"""The table [loop]."""

from dataclasses import dataclass, field

from train.sections.fields import number, one_of, steps_or

# Bounds of the plan that is made before the first step: epochs, steps, and rows of a step.
MAX_EPOCHS = 100_000
MAX_STEPS = 10_000_000
MAX_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class LoopSection:
    """The training loop: length, batch size, precision, devices, evaluations and checkpoints.

    Attributes:
      epochs: number of passes through the rows, at most 100,000.
      max_steps: number of optimizer steps, at most 10,000,000; overrides `epochs`.
      batch_size: rows of an optimizer step, over all devices and accumulation steps; at most 1,048,576.
      dtype: compute dtype; parameters and optimizer moments are float32.
      dropout: false switches off the checkpoint's hidden_dropout_prob.
      eval_every: "epoch", or a number of steps.
      save_every: "epoch", or a number of steps.
      best: the score of "eval" by which evaluations are compared, such as "loss" or "name/cosine_ndcg@10" of an
        evaluator; None is cosine_accuracy of rows with negatives, cosine_mrr@10 of others, and without such rows the
        main score of the first evaluator.
      log: also write metrics to "tensorboard" (events in `output`) or "wandb".
      early_stop: stop after so many evaluations without a better score.
      keep: number of newest checkpoints to keep, besides the best.
      gradient_accumulation_steps: micro-batches that a batch is split into, one in memory at a time.
      export: export the weights of the last step, or of the best evaluation.
      remat: recompute each layer in the backward pass, which saves memory and costs time.
      mesh: devices of all hosts together, such as "data=4,model=2"; None is one device.
      fsdp: also shard parameters and optimizer moments over the mesh's `data` axis.
    """

    epochs: int = number(3, least=1, most=MAX_EPOCHS)
    max_steps: int | None = number(None, least=1, most=MAX_STEPS)
    batch_size: int = number(16, least=1, most=MAX_ROWS)
    gradient_accumulation_steps: int = number(1, least=1)
    dtype: str = one_of("float32", "bfloat16")
    dropout: bool = True
    eval_every: str | int = steps_or("epoch")
    save_every: str | int = steps_or("epoch")
    best: str | None = None
    log: tuple[str, ...] = field(default=(), metadata={"choices": ("tensorboard", "wandb")})
    early_stop: int | None = number(None, least=1)
    keep: int = number(2, least=1)
    export: str = one_of("last", "best")
    remat: bool = False
    mesh: str | None = None
    fsdp: bool = False
