"""What a model costs, worked out from its shape alone: parameters, FLOPs, memory."""

from dataclasses import dataclass

from yunque.model.configuration import LlamaConfig

_FLOAT = 4  # bytes
# Weight, gradient and AdamW's two moments, all float32.
_TRAINED_BYTES = 4 * _FLOAT


@dataclass(frozen=True)
class ModelPlan:
    """Figures of a model; FLOPs count a multiplication and an addition as two, bytes are of tensors only.

    `forward_flops_per_token` is for a full context; training does three times that (once forward, twice
    backward). `training_bytes` holds weights, gradients, optimizer and the activations of one batch;
    `inference_bytes` weights and the cache of one full context.
    """

    parameters: int
    forward_flops_per_token: int
    training_flops_per_token: int
    weight_bytes: int
    activation_bytes: int
    training_bytes: int
    cache_bytes: int
    inference_bytes: int


def count_parameters(config: LlamaConfig) -> int:
    """How many numbers the model has; the tied embedding counts once."""
    return _matrix_numbers(config) + config.hidden_size * (2 * config.num_hidden_layers + 1)


def _matrix_numbers(config: LlamaConfig) -> int:
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * (2 * queries + 2 * keys)
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    return config.vocab_size * config.hidden_size + (attention + feed_forward) * config.num_hidden_layers


def forward_flops_per_token(config: LlamaConfig, context: int) -> int:
    """FLOPs of one token in a window of `context`: two for each number of a matrix, and attention's two products.

    Attention is counted over the whole window, as kernels with a mask compute it.
    """
    attention = 4 * config.num_attention_heads * config.head_dim * context * config.num_hidden_layers
    return 2 * _matrix_numbers(config) + attention


def activation_bytes(config: LlamaConfig, tokens: int, float_bytes: int) -> int:
    """What the backward pass needs kept of `tokens` tokens; matrices' inputs have `float_bytes` bytes a number."""
    queries = config.num_attention_heads * config.head_dim
    # A layer keeps: both norms' inputs (float32) and outputs; queries, keys and values as attention reads them
    # (repeated to every head) and its output twice (transposed for the projection); gate, its SiLU, up and product.
    layer = config.hidden_size * (2 * _FLOAT + 2 * float_bytes)
    layer += queries * 5 * float_bytes + 4 * config.intermediate_size * float_bytes
    # The scores, their float32 copy's log-softmax, and the last norm.
    top = config.vocab_size * 2 * _FLOAT + config.hidden_size * (_FLOAT + float_bytes)
    return tokens * (layer * config.num_hidden_layers + top)


def plan_model(config: LlamaConfig, batch_tokens: int = 0, float_bytes: int = _FLOAT) -> ModelPlan:
    """The figures of a model that trains on `batch_tokens` tokens at once."""
    parameters = count_parameters(config)
    flops = forward_flops_per_token(config, config.max_position_embeddings)
    if config.quantization_config:
        # A byte a number, a scale a row, norms in float.
        rows = config.vocab_size + config.num_hidden_layers * (
            (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
            + 2 * config.hidden_size
            + 2 * config.intermediate_size
        )
        matrices = _matrix_numbers(config)
        weights = matrices + _FLOAT * (rows + parameters - matrices)
    else:
        weights = _FLOAT * parameters
    keys = config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    cache = 2 * _FLOAT * keys * config.max_position_embeddings
    activations = activation_bytes(config, batch_tokens, float_bytes)
    return ModelPlan(
        parameters=parameters,
        forward_flops_per_token=flops,
        training_flops_per_token=3 * flops,
        weight_bytes=weights,
        activation_bytes=activations,
        training_bytes=_TRAINED_BYTES * parameters + activations,
        cache_bytes=cache,
        inference_bytes=weights + cache,
    )
