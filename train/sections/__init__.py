"""Sections of a recipe: each class is a table of the TOML file, each attribute a key with its default."""

from train.sections.data import COLUMNS, SPLITS, DataSection, SetSection
from train.sections.evaluator import EvaluatorSection
from train.sections.loop import MAX_EPOCHS, MAX_STEPS, LoopSection
from train.sections.lora import LoraSection
from train.sections.loss import LOSS_KEYS, LossSection
from train.sections.new_head import NewHeadSection
from train.sections.optimizer import OptimizerSection

__all__ = [
    "COLUMNS",
    "LOSS_KEYS",
    "MAX_EPOCHS",
    "MAX_STEPS",
    "SPLITS",
    "DataSection",
    "EvaluatorSection",
    "LoopSection",
    "LoraSection",
    "LossSection",
    "NewHeadSection",
    "OptimizerSection",
    "SetSection",
]
