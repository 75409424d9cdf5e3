"""Adapters in the files of peft."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from stella_jax.checkpoint.directory import write_json
from stella_jax.lora_config import LoraConfig


def write_adapter(params: Mapping[str, jax.Array], config: LoraConfig, base: str, directory: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      base: path or repo id of the base checkpoint, for adapter_config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for name, linear in config.linears:
        for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            stacked = np.asarray(params[f"{linear.adapter(name)}/{leaf}"], np.float32)
            for layer, matrix in enumerate(stacked):
                key = f"base_model.model.{linear.torch.format(i=layer)}.{name}.{theirs}.weight"
                tensors[key] = np.ascontiguousarray(matrix.T)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [name for name, _ in config.linears],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(directory / "adapter_config.json", fields)
