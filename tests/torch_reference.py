"""PyTorch references: models of transformers and sentence-transformers with random weights.

Imported by the fixtures of tests marked `torch`, never at the top of a test file.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_files import write_layout
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from shapes import Shape
from torch import nn
from transformers import AutoModel, GteConfig, GteModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.models.gte.modeling_gte import GteRotaryEmbedding, apply_rotary_pos_emb

MAX_LENGTH = 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def gte_config(shape: Shape) -> GteConfig:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.theta}
    if shape.divisor != 1:
        rope |= {"rope_type": "linear", "factor": shape.divisor}
    return GteConfig(
        vocab_size=2048,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=shape.token_types,
        pad_token_id=shape.pad_id,
        rope_parameters=rope,
        layer_norm_eps=shape.eps,
    )


def qwen2_config(shape: Shape) -> Qwen2Config:
    """The config of an encoder: every token attends to every other."""
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=shape.pad_id,
        eos_token_id=shape.pad_id,
        bos_token_id=shape.pad_id,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        rms_norm_eps=shape.eps,
    )
    config.is_causal = False
    return config


def random_model(shape: Shape, seed: int = 0) -> PreTrainedModel:
    """Weights at a scale where attention is peaked: scores of standard deviation near 4, unlike a new model's."""
    generator = torch.Generator().manual_seed(seed)
    config, kind = (qwen2_config(shape), Qwen2Model) if shape.kv_heads else (gte_config(shape), GteModel)
    model = kind._from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.1 * noise
        elif "norm" in name.lower():
            value = 1 + 0.1 * noise
        elif "embed" in name:
            value = noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            value = noise * gain / parameter.shape[1] ** 0.5
        parameter.data.copy_(value)
    return model


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in float64; Qwen2's norms and softmax stay in float32."""
    copy = type(model)._from_config(model.config, attn_implementation="eager").eval()
    copy.load_state_dict(model.state_dict())
    return copy.double()


def as_causal(model: Any) -> PreTrainedModel:
    """A Qwen2 as published: names start with `model.`, and there is an `lm_head.weight`."""
    whole = Qwen2ForCausalLM(model.config)
    whole.model.load_state_dict(model.state_dict())
    return whole


def save(model: PreTrainedModel, path: Path, tokenizer: Path, pooling: str = "mean", **options: Any) -> Path:
    """Saves the model by `save_pretrained`, with a tokenizer and the other files of a checkpoint."""
    model.save_pretrained(path, **options)
    write_layout(path, model.config.hidden_size, pooling, MAX_LENGTH)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, path / name)
    return path


def saved(path: Path) -> PreTrainedModel:
    """Loads the model of a directory with transformers."""
    return AutoModel.from_pretrained(path, attn_implementation="eager")


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(L+1, B, T, D): after the embeddings and after each layer, the last one after the last norm if there is one."""
    output = model(torch.tensor(ids).long(), torch.tensor(mask).long(), output_hidden_states=True)
    return np.stack([state.numpy() for state in output.hidden_states])


@torch.no_grad()
def stages(model: Any, ids: np.ndarray, mask: np.ndarray, x: np.ndarray, layer: int) -> dict[str, np.ndarray]:
    """What each module of a layer returns for the input x (B, T, D), the embeddings of the ids, and a last norm."""
    block: Any = model.layers[layer]
    is_qwen2 = isinstance(model, Qwen2Model)
    states = torch.tensor(x).to(model.dtype)
    rotation = model.rotary_emb(states, torch.arange(x.shape[1])[None])
    blocked = torch.where(torch.tensor(mask)[:, None, None].bool(), 0.0, float("-inf")).to(model.dtype)
    out = {
        "embeddings": (model.embed_tokens if is_qwen2 else model.embeddings)(torch.tensor(ids).long()),
        "attention": block.self_attn(states, attention_mask=blocked, position_embeddings=rotation)[0],
        "mlp": block.mlp(states),
        "layer": block(states, attention_mask=blocked, position_embeddings=rotation),
        **({"norm": model.norm(states)} if is_qwen2 else {}),
    }
    return {name: value.numpy() for name, value in out.items()}


def rotary(theta: float, divisor: float, head_dim: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (T, H/2) of the positions."""
    rotary = GteRotaryEmbedding(gte_config(Shape(head_dim, 1, 1, 1, 0, theta, divisor)))
    tables = rotary(torch.zeros(1), torch.arange(num_tokens)[None])
    cos, sin = (table[0, :, : head_dim // 2].numpy() for table in tables)
    return cos, sin


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotates x (B, T, N, H) by tables (T, H/2)."""
    cos_, sin_ = (torch.tensor(np.concatenate([table, table], axis=-1))[None] for table in (cos, sin))
    heads = torch.tensor(x.transpose(0, 2, 1, 3))
    return apply_rotary_pos_emb(heads, heads, cos_, sin_)[0].numpy().transpose(0, 2, 1, 3)


def sentence_transformer(
    path: Path, *, pooling: Any, dense: tuple[int, nn.Module] | None, normalize: bool, **options: Any
) -> SentenceTransformer:
    """The checkpoint at `path` as a sentence-transformers model, with random Dense weights."""
    transformer = Transformer(str(path))
    modules: list[Any] = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    if dense is not None:
        generator = torch.Generator().manual_seed(1)
        dim, activation = dense
        hidden = transformer.get_embedding_dimension()
        weight = torch.randn((dim, hidden), generator=generator) / hidden**0.5
        bias = torch.randn((dim,), generator=generator)
        modules.append(Dense(hidden, dim, activation_function=activation, init_weight=weight, init_bias=bias))
    if normalize:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device="cpu", **options)
