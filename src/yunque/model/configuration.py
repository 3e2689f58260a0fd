"""The shape of a Llama model, under the field names of the Hugging Face `config.json`."""

from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from yunque.configuration import Settings


class Quantization(Settings):
    """How the weights of a checkpoint are kept: int8 with one float scale for each output row."""

    quant_method: Literal["yunque_int8"] = "yunque_int8"
    bits: Literal[8] = 8


class LlamaConfig(Settings):
    """Shape of a decoder-only model (RMSNorm, rotary positions, grouped-query attention, SwiGLU).

    Fields of `config.json` that are not ours (another writer's version, for example) are left out when read.
    Raises pydantic's ValidationError for a shape that cannot be.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    architectures: tuple[Literal["LlamaForCausalLM"], ...] = ("LlamaForCausalLM",)
    model_type: Literal["llama"] = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    hidden_act: Literal["silu"] = "silu"
    initializer_range: float = 0.02
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    torch_dtype: Literal["float32"] = "float32"
    quantization_config: Quantization | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_newer_fields(cls, values: Any) -> Any:
        """Newer writers keep the rotary base in a group, and call `torch_dtype` `dtype`."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        rope = values.pop("rope_parameters", None) or values.pop("rope_scaling", None) or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rotary positions of type {rope['rope_type']!r} are not known")
        for group, theirs, ours in ((rope, "rope_theta", "rope_theta"), (values, "dtype", "torch_dtype")):
            if theirs in group:
                values[ours] = group[theirs]
        return values

    @model_validator(mode="after")
    def _check_shape(self) -> "LlamaConfig":
        sizes = (self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers)
        if min(*sizes, self.num_attention_heads, self.num_key_value_heads, self.max_position_embeddings) < 1:
            raise ValueError("every size must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError("head_dim must be even: rotary positions turn pairs of numbers")
        return self
