"""One training loop and its objectives. Importing it imports torch."""

from yunque.train.compress import quantize
from yunque.train.instruct import plan_tuning, tune
from yunque.train.loss import evaluate_loss
from yunque.train.pretrain import PretrainSettings, plan_pretraining, pretrain
from yunque.train.tune_settings import TuneSettings
from yunque.train.tuning_rows import TuningRows, tuning_rows

__all__ = [
    "PretrainSettings",
    "TuneSettings",
    "TuningRows",
    "evaluate_loss",
    "plan_pretraining",
    "plan_tuning",
    "pretrain",
    "quantize",
    "tune",
    "tuning_rows",
]
