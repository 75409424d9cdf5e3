"""The checkpoint on torch with its best settings: batches by tokens, and compiled or without padding.

sentence-transformers' own `encode` runs 32 texts at a time, which leaves an accelerator idle.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_TOKENS = 2**16  # padding included
TOKEN_CHARACTERS = 3  # minimum of English on average


def batches_by_tokens(texts: Sequence[str], length: int) -> Iterator[list[int]]:
    """Indices of texts in batches of at most BATCH_TOKENS, longest first; texts are truncated at `length` tokens."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order:
        longest = min(length, 2 + len(texts[order[0]]) // TOKEN_CHARACTERS)
        rows = max(1, BATCH_TOKENS // longest)
        yield order[:rows]
        order = order[rows:]


def torch_encoder(
    directory: Path, dtype: str, device: str, attention: str, compiled: bool
) -> Callable[[list[str], int], np.ndarray]:
    """sentence-transformers' modules without its loop: (texts, maximum tokens of a text) -> embeddings [n, dim].

    Args:
      directory: the checkpoint.
      dtype: of weights and computation.
      device: torch's name of it.
      attention: transformers' name of it; flash_attention_2 concatenates texts instead of padding them.
      compiled: whether to use torch.compile, once for all shapes.

    Raises:
      ImportError: a package is missing.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    kwargs = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    model: Any = SentenceTransformer(str(directory), device=device, model_kwargs=kwargs, local_files_only=True)
    if compiled:
        transformer = model[0].auto_model  # its forward is called directly, so nn.Module.compile would have no effect
        transformer.forward = torch.compile(transformer.forward, dynamic=True)

    def encode(texts: list[str], length: int) -> np.ndarray:
        model.max_seq_length = length
        order, vectors = [], []
        with torch.inference_mode():
            for places in batches_by_tokens(texts, length):
                features = batch_to_device(model.preprocess([texts[i] for i in places]), model.device)
                vectors.append(model(features)["sentence_embedding"])
                order += places
            found = torch.cat(vectors).float().cpu().numpy()
        return found[np.argsort(order)]

    return encode
