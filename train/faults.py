"""Faulty rows: their number and the first few, for an error."""

from dataclasses import dataclass, field

SHOWN_FAULTS = 3


@dataclass(slots=True)
class Faults:
    """Faults of rows.

    Attributes:
      count: the number of faulty rows.
      first: order and fault of the first SHOWN_FAULTS of them.
    """

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, order: int, fault: str, count: int = 1) -> None:
        self.count += count
        self.first = sorted([*self.first, (order, fault)])[:SHOWN_FAULTS]

    @property
    def sentence(self) -> str:
        more = f", and {self.count - SHOWN_FAULTS} more" if self.count > SHOWN_FAULTS else ""
        return "; ".join(fault for _, fault in self.first) + more
