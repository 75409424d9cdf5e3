"""The systems that benchmarks compare: this project and its peers, with the same weights, tokens and cores.

A peer that cannot run here, as a package or a kernel is missing, is left out with a sentence that says why.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from on_torch import batches_by_tokens, torch_encoder
from onnx_export import INPUTS, OUTPUT, exported

from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.tokenizer.tokenizer import Tokenizer

BATCH_SIZE = 32  # sentence-transformers' default

# Float32 arrays of all scores that the exported attention keeps at a time: 4.6 to 7.6, measured by peak memory.
SCORES = 6


def batches_of_32(texts: Sequence[str], length: int) -> Iterator[list[int]]:
    """Indices of texts in sentence-transformers' batches, longest first."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    yield from (order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE))


class LeftOutError(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class System:
    """A system that embeds texts.

    Attributes:
      name: its name in tables.
      encode: (texts, tokens at which they are truncated) -> embeddings [n, dim] in their order.
      score_bytes: attention's memory for a row of T tokens / T^2; 0 if it does not store all scores.
      batches: (texts, tokens at which they are truncated) -> indices of the texts of each batch.
      pads: whether the texts of a batch are padded to the longest.
    """

    name: str
    encode: Callable[[list[str], int], np.ndarray]
    score_bytes: int = 0
    batches: Callable[[Sequence[str], int], Iterator[list[int]]] = batches_of_32
    pads: bool = True

    def computed(self, texts: Sequence[str], counts: Sequence[int], length: int) -> int:
        """Tokens computed, padding included, for texts with these token counts, truncated at `length`."""
        if not self.pads:
            return sum(counts)
        return sum(len(places) * max(counts[i] for i in places) for places in self.batches(texts, length))

    def too_large(self, count: int, length: int) -> str:
        """A sentence if `count` texts of this length do not fit in memory; else ""."""
        needed, available = min(count, BATCH_SIZE) * length**2 * self.score_bytes, _available_memory()
        if needed < 0.7 * available:
            return ""
        sizes = f"some {needed / 1e9:.1f} GB for attention scores, and {available / 1e9:.1f} GB are free"
        return f"{self.name} is left out at {length} tokens: it needs {sizes}."


def threads() -> int:
    """Threads of every system: the process's cores, as in JAX."""
    return len(os.sched_getaffinity(0))


def stella_jax(model: Stella) -> System:
    """This project."""

    def encode(texts: list[str], length: int) -> np.ndarray:
        model.max_seq_length = length
        return model.encode(texts)

    return System("stella-jax", encode)


def sentence_transformers(directory: Path, dtype: str) -> System:
    """sentence-transformers with transformers' own class."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise LeftOutError(f"{error.name} is not installed") from None
    device = _torch_device()
    kwargs = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(str(directory), device=device, model_kwargs=kwargs, local_files_only=True)

    def encode(texts: list[str], length: int) -> np.ndarray:
        model.max_seq_length = length
        return model.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)

    return System("sentence-transformers", encode)


def torch_by_tokens(directory: Path, dtype: str, name: str, attention: str = "sdpa", compiled: bool = False) -> System:
    """sentence-transformers' modules with larger batches than its own loop (see on_torch.py)."""
    try:
        device = _torch_device()
        if attention == "flash_attention_2" and dtype == "float32":
            raise LeftOutError("flash attention does not support float32")
        encode = torch_encoder(directory, dtype, device, attention, compiled)
    except ImportError as error:
        raise LeftOutError(f"{error.name or 'flash_attn'} is not installed") from None
    return System(name, encode, batches=batches_by_tokens, pads=attention != "flash_attention_2")


def _torch_device() -> str:
    import torch

    if jax.default_backend() == "cpu":
        torch.set_num_threads(threads())
        return "cpu"
    if not torch.cuda.is_available():
        raise LeftOutError("torch finds no accelerator")
    return "cuda"


def onnx_runtime(directory: Path, dtype: str) -> System:
    """ONNX Runtime's CPU kernels on the exported model."""
    _needs_cpu()
    if dtype != "float32":
        raise LeftOutError(f"its CPU kernels do not support {dtype}")
    try:
        onnxruntime = import_module("onnxruntime")  # by name, so that type checks do not need it
    except ImportError as error:
        raise LeftOutError(f"{error.name} is not installed") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(_file(directory), options, providers=["CPUExecutionProvider"])

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))[0])

    return _exported_system("ONNX Runtime", directory, forward)


def open_vino(directory: Path, dtype: str) -> System:
    """OpenVINO's CPU plugin on the exported model."""
    _needs_cpu()
    try:
        sys.modules.setdefault("openvino_telemetry", cast(Any, None))  # no telemetry at import
        openvino = import_module("openvino")
    except ImportError as error:
        raise LeftOutError(f"{error.name} is not installed") from None
    core = openvino.Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise LeftOutError("it does not support bfloat16 on this CPU")
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],  # bf16 is the default on some CPUs
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: Any = core.compile_model(_file(directory), "CPU", settings)
    return _exported_system("OpenVINO", directory, lambda ids, mask: np.array(compiled([ids, mask])[0]))


PEERS: dict[str, Callable[[Path, str], System]] = {
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnx_runtime,
    "openvino": open_vino,
    "torch": partial(torch_by_tokens, name="torch"),
    "torch-compiled": partial(torch_by_tokens, name="torch, compiled", compiled=True),
    "torch-flash": partial(torch_by_tokens, name="torch, without padding", attention="flash_attention_2"),
}
CPU_PEERS = ("sentence-transformers", "onnxruntime", "openvino")
ACCELERATOR_PEERS = ("sentence-transformers", "torch", "torch-compiled", "torch-flash")


def usual_peers() -> list[str]:
    """Names of the usual peers on this platform."""
    return [*(CPU_PEERS if jax.default_backend() == "cpu" else ACCELERATOR_PEERS)]


def peers(directory: Path, dtype: str, wanted: Sequence[str]) -> tuple[list[System], list[str]]:
    """The wanted peers that can run here, and a sentence for each that cannot."""
    found, sentences = [], []
    for name in wanted:
        try:
            if json.loads((directory / "config.json").read_text())["model_type"] not in ("gte", "qwen2"):
                raise LeftOutError("it cannot read this config.json")
            found.append(PEERS[name](directory, dtype))
        except LeftOutError as reason:
            sentences.append(f"{name} is left out in {dtype}: {reason}.")
    return found, sentences


def _needs_cpu() -> None:
    if (platform := jax.default_backend()) != "cpu":
        raise LeftOutError(f"it runs on the CPU only, not on the {platform}")


def _file(directory: Path) -> str:
    try:
        return str(exported(directory))
    except ChildProcessError as error:
        raise LeftOutError(f"the export to ONNX failed ({error})") from None


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _exported_system(name: str, directory: Path, forward: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> System:
    """A system from a forward pass (ids, mask) -> embeddings, with the checkpoint's tokenizer."""
    checkpoint = Checkpoint.open(directory)
    tokenizer, config = checkpoint.tokenizer(), checkpoint.spec.config

    def encode(texts: list[str], length: int) -> np.ndarray:
        tokenizer.max_length = length
        vectors = {}
        for places in batches_of_32(texts, length):
            ids, mask = _padded(tokenizer, [texts[i] for i in places], config.pad_token_id)
            vectors |= zip(places, forward(ids, mask), strict=True)
        return np.stack([vectors[i] for i in range(len(texts))])

    return System(name, encode, SCORES * 4 * config.num_attention_heads)


def _padded(tokenizer: Tokenizer, texts: list[str], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (B, T) of a batch, padded to its longest text."""
    rows = [tokens.ids for tokens in tokenizer.encode(texts)]
    ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask
