"""The Transformer: its blocks, its families, its checkpoints, its cost, its quantization. It imports torch."""

from yunque.model.blocks import KeyValueCache
from yunque.model.checkpoint import load_model, read_configuration, save_model
from yunque.model.configuration import LlamaConfig
from yunque.model.llama import Llama
from yunque.model.plan import ModelPlan, plan_model
from yunque.model.quantize import quantize_model

__all__ = [
    "KeyValueCache",
    "Llama",
    "LlamaConfig",
    "ModelPlan",
    "load_model",
    "plan_model",
    "quantize_model",
    "read_configuration",
    "save_model",
]
