"""Cost analysis of a compiled program from its HLO text: FLOPs, memory traffic, and arrays moved only for their layout.

Unlike XLA's cost analysis, it counts a loop's body as often as it runs, and a kernel by its cost estimate.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
TILE = re.compile(r"T\(([\d,]+)\)")
NAME = re.compile(r"%([\w.\-]+)")
COMMENT = re.compile(r"/\*.*?\*/")
COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?")

# Pallas on a TPU, attention by cuDNN on a GPU.
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w+)"')
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "async-start"}
SLICES = {"slice", "dynamic-slice", "gather"}
# Instructions that change where or how numbers are stored, not the numbers.
MOVES = SLICES | {"copy", "transpose", "convert", "reshape", "bitcast", "concatenate", "pad", "broadcast"}
LARGE = 2**20


@dataclass(frozen=True, slots=True)
class Array:
    """An array's type and memory layout."""

    bits: int
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool

    @property
    def nbytes(self) -> int:
        """Bytes in memory, with minor dimensions padded to whole tiles."""
        sizes = [self.shape[axis] for axis in reversed(self.minor_to_major)] or list(self.shape)
        for i, step in enumerate(reversed(self.tile[-len(sizes) :] if sizes else ()), start=1):
            sizes[-i] = -(-sizes[-i] // step) * step
        return math.prod(sizes) * self.bits // 8

    @property
    def hbm(self) -> int:
        """Bytes in main memory: 0 for an array in VMEM or SMEM."""
        return 0 if self.on_chip else self.nbytes


@dataclass(frozen=True, slots=True)
class Op:
    """An instruction: `results` are the leaves of its shape, `operands` the names of others in its computation."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    def called(self, role: str) -> str:
        """The computation named by `calls`, `body`, `condition` or `to_apply`."""
        return re.findall(rf"\b{role}=%([\w.\-]+)", self.rest)[0]

    def numbers(self, attribute: str) -> list[int]:
        """The integers of `attribute={1,2}`; [] if it is missing."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.rest)
        return [int(n) for n in found[1].split(",") if n] if found else []


Computation = dict[str, Op]


class Program:
    """A compiled program: `compiled.as_text()`, parsed.

    Raises:
      ValueError: when counting a branch, a loop of unknown length, or a kernel without a cost estimate.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        ops: Computation = {}
        for line in text.splitlines():
            if header := COMPUTATION.match(line):
                ops = self.computations.setdefault(header[2], {})
                if header[1]:
                    self.entry = header[2]
            elif found := INSTRUCTION.match(line):
                ops[found[1]] = _op(found[1], COMMENT.sub("", found[2]))

    @cached_property
    def executed(self) -> list[tuple[Computation, Op, int]]:
        """Each top-level instruction (not inside a fusion), with its computation and how often it runs."""
        return list(self._executed(self.entry, 1))

    def _executed(self, name: str, times: int) -> Iterator[tuple[Computation, Op, int]]:
        ops = self.computations[name]
        for op in ops.values():
            if op.opcode == "conditional":
                raise ValueError(f"{op.name} is a branch, whose cost depends on the data")
            yield ops, op, times
            if op.opcode == "while":
                yield from self._executed(op.called("body"), times * self._trips(op))
            elif op.opcode in ("call", "async-start"):
                yield from self._executed(op.called("to_apply" if op.opcode == "call" else "calls"), times)

    def _trips(self, loop: Op) -> int:
        """How often a loop runs: the known trip count, else the limit of a scan's condition, `i < limit` from 0."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition = list(self.computations[loop.called("condition")].values())
        limits = [int(op.rest.split(")")[0]) for op in condition if op.opcode == "constant" and not op.results[0].shape]
        if len(limits) != 1 or "direction=LT" not in condition[-1].rest:
            raise ValueError(f"{loop.name} runs an unknown number of times")
        return limits[0]

    @property
    def matmul_flops(self) -> int:
        """FLOPs of dots and convolutions, also inside fusions; a multiply-add is two."""
        return sum(times * self._matmuls(ops, op) for ops, op, times in self.executed)

    def _matmuls(self, ops: Computation, op: Op) -> int:
        if op.opcode == "fusion":
            inner = self.computations[op.called("calls")]
            return sum(self._matmuls(inner, inside) for inside in inner.values())
        if op.opcode == "dot":
            left = ops[op.operands[0]].results[0].shape
            return 2 * math.prod(op.results[0].shape) * math.prod(left[i] for i in op.numbers("lhs_contracting_dims"))
        return _convolution_flops(ops, op) if op.opcode == "convolution" else 0

    @property
    def kernels(self) -> list[tuple[Op, int]]:
        """The attention kernels and how often each runs."""
        return [(op, times) for _, op, times in self.executed if KERNEL.search(op.rest)]

    @property
    def kernel_flops(self) -> int:
        """FLOPs of the Pallas kernels, by their cost estimates."""
        return sum(times * _stated_flops(op) for op, times in self.kernels)

    @property
    def collectives(self) -> int:
        """The number of collective instructions."""
        return sum(bool(COLLECTIVE.fullmatch(op.opcode)) for _, op, _ in self.executed)

    @property
    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM if every instruction touches each of its arrays once.

        Padding to tiles counts, arrays in VMEM do not. Of an array that is only sliced or gathered from, the slices
        count. Repeated reads within a kernel are not counted, as they are not in the text.
        """
        return sum(times * self._traffic(ops, op) for ops, op, times in self.executed)

    def _traffic(self, ops: Computation, op: Op) -> int:
        if op.opcode in FREE or op.opcode.endswith("-done") or _is_alias(op):
            return 0
        if op.opcode in ("copy-start", "slice-start"):
            ends = op.results[:2]
            piece = ends[0 if op.opcode == "copy-start" else 1]
            return piece.nbytes * sum(not end.on_chip for end in ends)
        if op.opcode == "fusion-start":  # its results: all operands, what the fusion makes, a handle
            return self._traffic(ops, replace(op, opcode="fusion", results=op.results[-2:-1]))
        written = sum(result.hbm for result in op.results)
        return written + sum(self._read(ops, op, name) for name in dict.fromkeys(op.operands))

    def _read(self, ops: Computation, op: Op, name: str) -> int:
        """Bytes of an operand that `op` reads from HBM."""
        whole = sum(array.hbm for array in ops[name].results)
        if not whole:
            return 0
        if op.opcode in SLICES and op.operands[0] == name:
            return min(whole, op.results[0].nbytes)
        if op.opcode != "fusion":
            return whole
        inner = self.computations[op.called("calls")]
        places = [f"{i})" for i, operand in enumerate(op.operands) if operand == name]
        params = [inside.name for inside in inner.values() if inside.opcode == "parameter" and _place(inside) in places]
        return min(whole, sum(self._read_inside(inner, param, whole) for param in params))

    def _read_inside(self, ops: Computation, name: str, whole: int) -> int:
        """Bytes that a fusion reads of its parameter, directly or through a bitcast."""
        total = 0
        for op in (op for op in ops.values() if name in op.operands):
            if op.opcode == "bitcast":
                total += self._read_inside(ops, op.name, whole)
            else:
                total += self._read(ops, op, name) if op.opcode in {*SLICES, "fusion"} else whole
        return min(whole, total)

    @property
    def moves(self) -> list[Op]:
        """Instructions in loops that write 1 MiB or more to HBM and only move or convert data.

        Copies to and from VMEM are not included, as they overlap with computation.
        """
        return [op for _, op, times in self.executed if times > 1 and self._is_move(op)]

    def _is_move(self, op: Op) -> bool:
        large = op.opcode not in FREE and sum(result.hbm for result in op.results) >= LARGE
        inner = self.computations[op.called("calls")] if op.opcode == "fusion" else {op.name: op}
        known = [inside.opcode for inside in inner.values() if inside.opcode not in ("parameter", "constant", "tuple")]
        return large and bool(known) and all(opcode in MOVES or _is_concat(inner, opcode) for opcode in known)


def _op(name: str, text: str) -> Op:
    """An instruction from `SHAPE opcode(operands), attributes`."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].lstrip().partition("(")
    inside = rest[: _closing("(" + rest) - 2]
    arrays = tuple(_array(*found) for found in ARRAY.findall(text[:end]))
    return Op(name, opcode, arrays, tuple(NAME.findall(inside)), rest)


def _closing(text: str) -> int:
    """The index after the bracket that closes the one at the start of `text`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def _array(dtype: str, shape: str, layout: str) -> Array:
    order, _, rest = layout.partition(":")
    bits = re.search(r"\d+", dtype)
    tile = TILE.search(rest)
    return Array(
        bits=int(bits[0]) if bits else 8 * (dtype == "pred"),
        shape=_integers(shape),
        minor_to_major=_integers(order),
        tile=_integers(tile[1]) if tile else (),
        on_chip=bool(re.search(r"S\([1-9]", rest)),
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _place(parameter: Op) -> str:
    """`0)` of `parameter(0)`."""
    return parameter.rest.split(",")[0].strip()


def _is_alias(op: Op) -> bool:
    """Whether it is a custom call that only names memory."""
    return op.opcode == "custom-call" and bool(re.search(r'"(ConcatBitcast|AllocateBuffer)"', op.rest))


def _is_concat(ops: Computation, opcode: str) -> bool:
    """Whether it is a concatenation: the TPU concatenates bfloat16 as the maximum of two arrays padded with -inf."""
    padded = any(op.opcode == "pad" for op in ops.values())
    return opcode == "maximum" and padded


def _stated_flops(kernel: Op) -> int:
    stated = re.search(r'"cost_estimate":\{"flops":"(\d+)"', kernel.rest)
    if not stated:
        raise ValueError(f"the kernel {kernel.name} has no cost estimate")
    return int(stated[1])


def _convolution_flops(ops: Computation, op: Op) -> int:
    """2 * batch * input features * output features * pairs of an output position and a window tap on a real input.

    The TPU compiler writes a matmul over several dimensions as a convolution whose window is mostly padding.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    if not found:
        raise ValueError(f"{op.name} has no dim_labels")
    arrays = [ops[operand].results[0] for operand in op.operands[:2]] + [op.results[0]]
    left, right, out = (
        dict(zip(labels, x.shape, strict=True)) for labels, x in zip(found.groups(), arrays, strict=True)
    )
    window = re.search(r"window=\{([^}]*)\}", op.rest)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    pairs = math.prod(_pairs(fields, int(axis), left[axis], right[axis], out[axis]) for axis in left if axis.isdigit())
    return 2 * out["b"] * right["i"] * right["o"] * pairs


def _pairs(fields: dict[str, str], axis: int, size: int, taps: int, places: int) -> int:
    """The number of (place, tap) along one axis with place * stride + tap * dilation - padding inside the input."""
    stride, dilation, spread = (int(fields[key].split("x")[axis]) if key in fields else 1
                                for key in ("stride", "rhs_dilate", "lhs_dilate"))  # fmt: skip
    low = int(fields["pad"].split("x")[axis].split("_")[0]) if "pad" in fields else 0
    at = (place * stride + tap * dilation - low for place in range(places) for tap in range(taps))
    return sum(0 <= i < (size - 1) * spread + 1 and i % spread == 0 for i in at)
