"""Exports a checkpoint to ONNX: from ids and mask to embeddings (transformers' GteModel, pooling, head).

    python bench/onnx_export.py DIR FILE

Needs torch, onnx and onnxscript: the extras `test` and `bench` on Python 3.11.
"""

import subprocess
import sys
from pathlib import Path

INPUTS, OUTPUT = ("ids", "mask"), "embeddings"


def exported(directory: Path) -> Path:
    """The ONNX file of a checkpoint, next to its directory; exported in a process of its own if it does not exist.

    Raises:
      ChildProcessError: the export failed.
    """
    file = directory.with_name(f"{directory.name}-onnx") / "model.onnx"
    if not file.exists():
        command = [sys.executable, __file__, str(directory), str(file)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise ChildProcessError((process.stderr.strip().splitlines() or ["no output"])[-1])
    return file


def export(directory: Path, file: Path) -> None:
    """Writes the ONNX file, with its weights next to it, for any number of rows and tokens."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)

    class Embed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]

    ids = torch.ones(2, 16, dtype=torch.int64)
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    unfinished = file.with_name("unfinished") / file.name  # a folder, as the file contains the name of its weights
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Embed().eval(),
        (ids, torch.ones_like(ids)),
        str(unfinished),
        input_names=INPUTS,
        output_names=[OUTPUT],
        dynamic_shapes=(axes, axes),
        external_data=True,
        dynamo=True,
    )
    for part in sorted(unfinished.parent.iterdir(), reverse=True):  # the weights first
        part.rename(file.parent / part.name)
    unfinished.parent.rmdir()


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
