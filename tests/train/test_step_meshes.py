"""The training step over a mesh: the trajectory of one device, and a shard of the state on each."""

import re
from dataclasses import replace

import pytest
from marks import nightly, slow
from steps import (
    DROPPED,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    ROWS,
    TOKENS,
    Run,
    assert_same,
    assert_split,
    batch,
    made,
    own,
    ranking,
    start,
    trained,
    trajectory,
)

from train.losses import triplet


@pytest.mark.parametrize(
    "case",
    [
        *slow((ranking, "data=4,model=2", True)),
        *nightly(
            (triplet, "data=4,model=2", False),
            (triplet, "data=8", True),
            (ranking, "data=8", False),
            (own, "data=4,model=2", True),
        ),
    ],
)
def test_any_mesh_gives_the_trajectory_of_one_device(case) -> None:
    """With the negatives of the whole batch."""
    loss, mesh, fsdp = case
    assert_same(trajectory(Run(loss, mesh=mesh, fsdp=fsdp))[0], Run(loss))


@pytest.mark.nightly
def test_groups_over_a_mesh() -> None:
    run = Run(ranking, mesh="data=4,model=2", fsdp=True)
    assert len(batch(0, fit=True, devices=4).ids) > 1
    assert_same(trained(run, fit=True, devices=4)[0], Run(ranking))


@pytest.mark.nightly
def test_dropout_does_not_depend_on_the_mesh() -> None:
    assert_same(trajectory(replace(DROPPED, mesh="data=8"))[0], DROPPED)


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", ["data=8", "data=4,model=2"])
def test_fsdp_splits_parameters_and_moments_and_gathers_layers_one_by_one(mesh: str) -> None:
    run = Run(mesh=mesh, fsdp=True)
    _, step = made(run)
    state = start(run)
    assert_split(run, state)
    data, model = step.mesh.shape["data"], step.mesh.shape["model"]
    # The program of one device: its share of a stacked kernel comes in, and a layer of it is gathered at a time.
    text = step.lower(state, batch(0)).compile().as_text() or ""
    width = INTERMEDIATE // model
    assert re.search(rf"= f32\[{LAYERS},{HIDDEN // data},2,{width}\]\S* parameter\(", text)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert f"{HIDDEN},2,{width}" in gathered
    # Neither all layers at once, nor the tokens or states of all texts.
    assert not [shape for shape in gathered if re.match(rf"{LAYERS},{HIDDEN},|{3 * ROWS},{TOKENS}\b", shape)]
    assert_split(run, step(state, batch(0))[0])
