"""What the configurations of all families share: Hugging Face's `config.json`, read and written back whole."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, Strict, model_validator

from yunque.configuration import Settings

# A size that fits an index of torch; a checkpoint that claims more is not one.
# Whole numbers are strict: "128", 128.0 and true are none, and a file that has them was not written by a model.
Size = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
# Bounded before anything makes a list of them.
Layers = Annotated[int, Strict(), Field(ge=1, le=10_000)]
TokenId = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Activation = Literal[
    "silu",
    "swish",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
    "gelu_python",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "leaky_relu",
    "mish",
    "sigmoid",
    "tanh",
    "linear",
]


class Quantization(Settings):
    """How the matrices of a checkpoint are kept (see `yunque.model.quantize`); int4 in groups of `group_size`."""

    quant_method: Literal["yunque"] = "yunque"
    kind: Literal["int8", "int4"]
    group_size: Literal[32, 64, 128] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "int4") != (self.group_size is not None):
            raise ValueError("int4 has a group_size, and int8 has none")
        return self


class ModelConfig(Settings):
    """The shape of a model. Fields that a family does not know are kept and written back as they were.

    Raises pydantic's ValidationError for a shape that cannot be.
    """

    # A family whose files have names of its own (GPT-2's n_embd) gives its fields those as aliases.
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    architectures: tuple[str, ...] | None = None
    model_type: str
    vocab_size: Size
    tie_word_embeddings: Flag = True
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None
    pad_token_id: TokenId | None = None
    quantization_config: Quantization | None = None

    @property
    def context(self) -> int | None:
        """The most positions the model can read; None where nothing limits it."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """How many layers it has, those of an encoder and a decoder together."""
        raise NotImplementedError


class DecoderConfig(ModelConfig):
    """Shape of a decoder-only Transformer, under the names that most families use."""

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    max_position_embeddings: Size
    initializer_range: Positive = 0.02

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one; raises ValueError where they do not fit."""
        raise NotImplementedError

    @property
    def context(self) -> int | None:
        """The most positions the model can read."""
        return self.max_position_embeddings

    @property
    def num_layers(self) -> int:
        """How many layers it has."""
        return self.num_hidden_layers


class EncoderDecoderConfig(ModelConfig):
    """Shape of a model that reads a source and writes a target, which begins with `decoder_start_token_id`."""

    decoder_start_token_id: TokenId = Field(default=0, ge=0)


def head_size(hidden_size: int, num_heads: int) -> int:
    """The size of a head where all of them together are as wide as the model; raises ValueError if they cannot be."""
    if hidden_size % num_heads:
        raise ValueError(
            f"the hidden size {hidden_size} is not a multiple of the {num_heads} attention heads"
        )
    return hidden_size // num_heads
