"""Training of adapters: equal to peft's, and nothing but adapters moves."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from marks import nightly, slow
from paths import GOLDENS
from safetensors.numpy import load_file
from shapes import SHAPES

from stella_jax import EmbeddingModel, load
from stella_jax.lora import merge_lora, save_adapter, with_lora
from stella_jax.models import architecture_of
from train import Batcher, StepConfig, losses, make_step, optimizers
from train.sections import OptimizerSection
from train.step import State

STEPS, ROWS, RANK, ALPHA = 10, 4, 4, 8.0
SECTION = OptimizerSection(learning_rate=1e-3, weight_decay=0.01)
TRIPLETS = [
    json.loads(line) for line in (GOLDENS.parent.parent / "examples/porsche_triplets.jsonl").read_text().splitlines()
]
IDS = np.random.default_rng(0).integers(5, 2000, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 5, 9], np.int32)


def texts(step: int) -> list[list[str]]:
    rows = [TRIPLETS[(ROWS * step + i) % len(TRIPLETS)] for i in range(ROWS)]
    return [[row[column] for row in rows] for column in ("anchor", "positive", "negative")]


def trained(model: EmbeddingModel, steps: int = STEPS, devices: int = 1) -> tuple[list[float], State]:
    """The losses of some steps without the encoder's dropout, and the state after them.

    Args:
      devices: that divide the batches; what dropout draws depends on their shape.
    """
    trains = {name: model.params()[name] for name in model.trainable}
    optimizer = optimizers.from_recipe(SECTION, trains, steps, architecture_of(model.encoder.config))
    state, step = make_step(model, losses.triplet, optimizer.transformation, StepConfig(dropout=False))
    batcher = Batcher.for_model(model, ROWS, devices=devices)
    batcher = batcher.fit([texts(number) for number in range(steps)], all_seen=True)
    log = []
    for number in range(steps):
        state, metrics = step(state, batcher(texts(number)))
        log.append(float(metrics["loss"]))
    return log, state


# In a loop of one's own


def test_only_adapters_train() -> None:
    """Nothing else has a state or a copy, either."""
    model = with_lora(load("tiny", dim=32), RANK, targets=["v_proj", "gate_proj", "down_proj"])
    _, state = trained(model, 3)
    moments = state.opt_state[1][0]
    assert [*moments.mu] == model.trainable and all("/lora/" in name for name in model.trainable)
    for name, leaf in model.params().items():
        if name in model.trainable:
            assert (state.params[name] != leaf).any(), name
        else:
            assert state.params[name] is leaf, name


@pytest.mark.slow
def test_a_step_needs_less_memory_than_one_of_all_parameters() -> None:
    """Adapters of all linear layers: less optimizer state, and no more memory for the gradient."""

    def needed(model: EmbeddingModel) -> tuple[int, int]:
        state, step = make_step(model, losses.triplet, optax.adamw(1e-3))
        long = [[" ".join(["tea"] * 100)] * 8] * 3
        batch = Batcher.for_model(model, 8, max_length=64)(long)
        found = step.lower(state, batch).compile().memory_analysis()
        return found.argument_size_in_bytes, found.temp_size_in_bytes

    model = load("tiny", dim=32)
    params = sum(leaf.nbytes for leaf in model.params().values())
    (full, full_temporary), (lora, temporary) = needed(model), needed(with_lora(model, RANK))
    assert full > 3 * params and lora < 1.3 * params
    assert temporary < 1.05 * full_temporary


@pytest.mark.parametrize("mesh", nightly("data=4,model=2", "data=8"))
def test_any_mesh_gives_the_trajectory_of_one_device(mesh: str) -> None:
    """With dropout."""
    one, many = (
        trained(with_lora(load(GOLDENS / "stella", mesh=devices), RANK, dropout=0.1), 4, devices=8)[0]
        for devices in (None, mesh)
    )
    np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.mark.nightly
def test_adapters_have_their_own_dropout_rate() -> None:
    """Also if the encoder has none. At the first step adapters add nothing, so only later losses differ."""
    some, none = (trained(with_lora(load("tiny", dim=32), RANK, dropout=rate), 4)[0] for rate in (0.5, 0.0))
    assert some[:1] == none[:1] and some[-1] != none[-1]


# Beside peft

# It asks transformers in a way that this deprecates.
ASKS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def peft(torch_reference):
    import peft

    return peft


TOKENIZERS = {"stella-like": "stella", "qwen2-like": "stella-qwen2"}


@pytest.fixture(scope="module", params=TOKENIZERS)
def checkpoint(request, torch_reference, tmp_path_factory) -> Path:
    model = torch_reference.random_model(SHAPES[request.param])
    return torch_reference.save(model, tmp_path_factory.mktemp(request.param), GOLDENS / TOKENIZERS[request.param])


def their_log(torch_reference, peft, checkpoint: Path, adapter: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of sentence-transformers over a PeftModel in float64, and its tensors after the last step."""
    from sentence_transformers.sentence_transformer.losses import TripletLoss

    torch = torch_reference.torch
    model = torch_reference.sentence_transformer(checkpoint, pooling="mean", dense=None, normalize=False).double()
    model.max_seq_length = torch_reference.MAX_LENGTH
    adapted = peft.PeftModel.from_pretrained(model[0].auto_model, adapter, is_trainable=True).double()
    model[0].auto_model = adapted.base_model.model  # the adapters are within
    model.eval()
    named = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in named)
    optimizer = torch.optim.AdamW(named.values(), lr=1.0, weight_decay=SECTION.weight_decay)
    loss, log = TripletLoss(model), []
    rates = np.asarray(
        optimizers.schedule(SECTION.schedule, SECTION.learning_rate, STEPS, SECTION.warmup_ratio)(np.arange(STEPS))
    )
    for step in range(STEPS):
        value = loss([model.preprocess(column) for column in texts(step)], torch.empty(0))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), SECTION.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
        log.append(value.item())
    return log, {name.replace(".default", ""): p.detach().numpy() for name, p in named.items()}


def vectors(torch_reference, peft, checkpoint: Path, adapter: Path) -> np.ndarray:
    """Pooled vectors of a PeftModel that reads an adapter."""
    model = peft.PeftModel.from_pretrained(torch_reference.saved(checkpoint), adapter).eval()
    mask = np.arange(IDS.shape[1])[None] < LENGTHS[:, None]
    torch = torch_reference.torch
    with torch.no_grad():
        found = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(mask).long())
    return (found.last_hidden_state.numpy() * mask[:, :, None]).sum(axis=1) / LENGTHS[:, None]


@ASKS
@pytest.mark.torch
@pytest.mark.parametrize("checkpoint", [*slow("stella-like"), *nightly("qwen2-like")], indirect=True)
@pytest.mark.parametrize("targets", ["all-linear", *nightly(("q_proj", "v_proj", "up_proj"))])
def test_ten_steps_equal_peft_s(torch_reference, peft, checkpoint, tmp_path, targets) -> None:
    """Losses and adapters to 1e-4, and then the vectors of the adapted, the merged, and peft's own model to 1e-5."""
    model = with_lora(load(checkpoint), RANK, ALPHA, targets=targets, seed=1)
    save_adapter(model, tmp_path / "start")
    log, state = trained(model)
    theirs, tensors = their_log(torch_reference, peft, checkpoint, tmp_path / "start")
    np.testing.assert_allclose(log, theirs, rtol=1e-4)
    adapted = model.with_params(state.params)
    save_adapter(adapted, tmp_path / "end")
    ours = load_file(tmp_path / "end/adapter_model.safetensors")
    assert ours.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, err_msg=name)
    expected = np.asarray(jax.jit(adapted)(IDS, LENGTHS))
    np.testing.assert_allclose(jax.jit(merge_lora(adapted))(IDS, LENGTHS), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(torch_reference, peft, checkpoint, tmp_path / "end"), expected, atol=1e-5)
    assert np.abs(expected - np.asarray(jax.jit(load(checkpoint))(IDS, LENGTHS))).max() > 1e-2


@ASKS
@pytest.mark.torch
def test_all_linear_means_the_same_as_in_peft(torch_reference, peft, checkpoint, tmp_path) -> None:
    save_adapter(with_lora(load(checkpoint), RANK), tmp_path / "adapter")
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="FEATURE_EXTRACTION")
    theirs = peft.get_peft_model(torch_reference.saved(checkpoint), config)
    assert {*peft.get_peft_model_state_dict(theirs)} == {*load_file(tmp_path / "adapter/adapter_model.safetensors")}
