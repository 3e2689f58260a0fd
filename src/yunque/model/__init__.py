"""The Transformer: its blocks, its families, its checkpoints, its cost, its quantization. It imports torch."""

from yunque.model.attention import AttentionRecord, record_attention
from yunque.model.cache import Cache, KeyValueCache
from yunque.model.checkpoint import load_model, read_configuration, save_model
from yunque.model.configuration import ModelConfig
from yunque.model.families.llama import Llama, LlamaConfig
from yunque.model.family import Family, family_of, known_model_types, new_model
from yunque.model.language_model import CausalModel, Encoder, EncoderDecoder, LanguageModel
from yunque.model.plan import ModelPlan, plan_model
from yunque.model.quantize import quantize_model

__all__ = [
    "AttentionRecord",
    "Cache",
    "CausalModel",
    "Encoder",
    "EncoderDecoder",
    "Family",
    "KeyValueCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "ModelConfig",
    "ModelPlan",
    "family_of",
    "known_model_types",
    "load_model",
    "new_model",
    "plan_model",
    "quantize_model",
    "read_configuration",
    "record_attention",
    "save_model",
]
