"""The table [lora]."""

from dataclasses import dataclass

from train.sections.fields import number


@dataclass(frozen=True, slots=True)
class LoraSection:
    """LoRA: trains low-rank adapters of the layers only.

    Attributes:
      rank: of an adapter's matrices.
      alpha: an adapter's output is scaled by alpha / rank.
      dropout: rate of dropout on an adapter's input, independent of the encoder's.
      targets: linear layers with an adapter, such as ["q_proj", "v_proj"], or "all-linear".
      head: also train the head.
    """

    rank: int = number(8, least=1, most=8192)
    alpha: float = number(16.0, above=0)
    dropout: float = number(0.0, least=0, most=0.99)
    targets: str | tuple[str, ...] = "all-linear"
    head: bool = False
