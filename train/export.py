"""The trained model as a checkpoint that sentence-transformers, `Stella` and `convert` load, with its card.

What was not trained keeps its bits; what was is float32. Where the base's own config.json is one that transformers
cannot load without remote code, names and config are spelt as transformers spells them.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from stella_jax.checkpoint import Checkpoint
from stella_jax.heads import Head
from stella_jax.lora import LoraConfig, merged_kernels, write_adapter
from stella_jax.save import save_params
from stella_jax.side_files import ADAPTER
from stella_jax.torch_layout import native_tokenizer
from train import curves
from train.card import Origin, card
from train.metrics import Metrics
from train.new_head import write_new_head
from train.step import Params

PROVENANCE = "training.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint, the head that was trained through, if any, and the parameters that were trained, by name.

    With adapters, `params` has the kernels under them as well.
    """

    base: Checkpoint
    head: Head | None
    params: Params
    lora: LoraConfig | None = None

    @property
    def merged(self) -> Params:
        """The parameters that the checkpoint is to have in place of its own."""
        if self.lora is None:
            return self.params
        own = {name: leaf for name, leaf in self.params.items() if "/lora/" not in name}
        return own | merged_kernels(self.params, self.lora)

    @property
    def stale_heads(self) -> list[str]:
        """Folders of heads that belong to the encoder as it was before, by their dimension."""
        moved = any(name.startswith("encoder/") for name in self.params)
        heads = self.base.layout.heads
        return [heads[dim].folder for dim in sorted(heads) if moved and heads[dim] != self.head]


def export(trained: Trained, origin: Origin, metrics: Metrics, destination: Path) -> None:
    """Writes the model, and when it is whole, puts it in place of what is at `destination`.

    A kill between the two renames leaves the older one as ".<name>.old", and nothing at `destination`.

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
        text = card(origin, metrics, base.layout, trained.head, trained.stale_heads, has_curves, tokenizer)
        (directory / "README.md").write_text(text, encoding="utf-8")
        (directory / PROVENANCE).write_text(json.dumps(origin.as_dict(), indent=2) + "\n", encoding="utf-8")

    save_params(
        base,
        [trained.head],
        trained.merged,
        working,
        native=not _is_native(base),
        settings=replace(base.layout, max_seq_length=longest) if longest else None,
        finish=finish,
    )
    _replace(destination, working)


def is_exported(destination: Path, origin: Origin) -> bool:
    """Whether what is at `destination` is the model of this origin."""
    try:
        return json.loads((destination / PROVENANCE).read_bytes()) == origin.as_dict()
    except (OSError, ValueError):
        return False


def _is_native(base: Checkpoint) -> bool:
    """Whether transformers loads config.json and tokenizer.json as they are: they state all that ours would."""
    fields = base.directory.json_object(base.layout.file("config.json"))
    return fields | base.layout.config.native_json() == fields and native_tokenizer(base) is None


def _replace(destination: Path, working: Path) -> None:
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    working.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
