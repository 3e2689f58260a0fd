"""One training loop and its objectives. Importing it imports torch."""

from yunque.train.compress import quantize
from yunque.train.instruct import TuneSettings, tune
from yunque.train.loss import evaluate_loss
from yunque.train.pretrain import PretrainSettings, plan_pretraining, pretrain

__all__ = [
    "PretrainSettings",
    "TuneSettings",
    "evaluate_loss",
    "plan_pretraining",
    "pretrain",
    "quantize",
    "tune",
]
