"""Export of the trained model, with its card, as a checkpoint for sentence-transformers, `Stella` and `convert`.

Trained parameters are float32; all others keep their bits. If transformers cannot load the base's config.json without
remote code, the export uses transformers' own names and config.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.directory import write_json
from stella_jax.checkpoint.save import save_params
from stella_jax.checkpoint.side_files import ADAPTER
from stella_jax.checkpoint.torch_layout import native_tokenizer
from stella_jax.lora import merged_kernels
from stella_jax.lora_config import LoraConfig
from stella_jax.models.heads import Head
from stella_jax.peft_files import write_adapter
from train import curves
from train.card import Origin, card
from train.metrics import MetricsLog
from train.new_head import write_new_head
from train.step import Params

ORIGIN_FILE = "training.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint and what was trained of it.

    Attributes:
      base: the checkpoint before training.
      head: the trained head, if any.
      params: trained parameters by name; with adapters, also the kernels that they adapt.
      lora: the adapters' configuration, if any.
    """

    base: Checkpoint
    head: Head | None
    params: Params
    lora: LoraConfig | None = None

    @property
    def merged(self) -> Params:
        """The parameters that replace the checkpoint's, adapters merged."""
        if self.lora is None:
            return self.params
        own = {name: leaf for name, leaf in self.params.items() if "/lora/" not in name}
        return own | merged_kernels(self.params, self.lora)

    @property
    def stale_heads(self) -> list[str]:
        """Folders of heads that belong to the encoder before training, sorted by dimension."""
        moved = any(name.startswith("encoder/") for name in self.params)
        heads = self.base.spec.heads
        return [heads[dim].folder for dim in sorted(heads) if moved and heads[dim] != self.head]


def export(trained: Trained, origin: Origin, metrics: MetricsLog, destination: Path) -> None:
    """Writes the model to a temporary directory, then renames it to `destination`, replacing what is there.

    A kill between the two renames leaves the old export as ".<name>.old" and nothing at `destination`.

    Raises:
      StellaError: the disk is full.
    """
    working = destination.with_name(f".{destination.name}.new")
    shutil.rmtree(working, ignore_errors=True)
    base, longest = trained.base, origin.recipe.data.max_length

    def finish(directory: Path) -> None:
        if origin.recipe.new_head:
            write_new_head(base, directory)
        if trained.lora:
            write_adapter(trained.params, trained.lora, origin.recipe.model, directory / ADAPTER)
        has_curves = curves.draw(metrics, directory / curves.FILE, origin.recipe.loop.best)
        tokenizer = base.tokenizer(longest)
        text = card(origin, metrics, base.spec, trained.head, trained.stale_heads, has_curves, tokenizer)
        (directory / "README.md").write_text(text, encoding="utf-8")
        write_json(directory / ORIGIN_FILE, origin.as_dict())

    save_params(
        base,
        [trained.head],
        trained.merged,
        working,
        native=not _is_native(base),
        settings=replace(base.spec, max_seq_length=longest) if longest else None,
        finish=finish,
    )
    _replace(destination, working)


def is_exported(destination: Path, origin: Origin) -> bool:
    """Whether `destination` has the model of this origin."""
    try:
        return json.loads((destination / ORIGIN_FILE).read_bytes()) == origin.as_dict()
    except (OSError, ValueError):
        return False


def _is_native(base: Checkpoint) -> bool:
    """Whether transformers loads the base's config.json and tokenizer.json unchanged."""
    fields = base.directory.json_object(base.spec.file("config.json"))
    return fields | base.spec.config.native_json() == fields and native_tokenizer(base) is None


def _replace(destination: Path, working: Path) -> None:
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    working.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
