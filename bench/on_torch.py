"""The checkpoint on torch, set up as well as it can be: batches by tokens, and compiled or without padding.

sentence-transformers' own `encode` takes 32 texts at a time, which leaves an accelerator waiting.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_TOKENS = 2**16  # padding included
TOKEN_CHARACTERS = 3  # at least, of English on average


def batches_by_tokens(texts: Sequence[str], length: int) -> Iterator[list[int]]:
    """Places of the texts in batches of BATCH_TOKENS at most, most characters first; texts are cut at `length`."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order:
        longest = min(length, 2 + len(texts[order[0]]) // TOKEN_CHARACTERS)
        rows = max(1, BATCH_TOKENS // longest)
        yield order[:rows]
        order = order[rows:]


def torch_encoder(
    directory: Path, dtype: str, device: str, attention: str, compiled: bool
) -> Callable[[list[str], int], np.ndarray]:
    """sentence-transformers' modules, without its loop: (texts, most tokens of a text) -> embeddings [n, dim].

    Args:
      attention: transformers' name of it; with flash_attention_2 texts are joined instead of padded.
      compiled: by torch's compiler, once for all shapes.

    Raises:
      ImportError: a package is missing.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    kwargs = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    model: Any = SentenceTransformer(str(directory), device=device, model_kwargs=kwargs, local_files_only=True)
    if compiled:
        transformer = model[0].auto_model  # whose forward is called by name, past what nn.Module.compile changes
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
