"""Writing a Llama-shaped model as GGUF: matrices as Q8_0, norms as float32.

Q8_0 keeps int8 numbers in blocks of 32 with a float16 scale each.
Needs the package `gguf` (the extra [gguf]). Shapes: rows first, as in PyTorch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.families.llama import LlamaConfig
from yunque.model.formats.files import TensorEntry
from yunque.model.formats.gguf import gguf_package
from yunque.model.formats.gguf_names import PAIRED, ROPE_FACTORS, gguf_name
from yunque.model.formats.gguf_rope import factors_of
from yunque.model.formats.gguf_tokenizer import gguf_vocabulary
from yunque.model.formats.rotary_rows import pairs_from_halves
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer

_ARCHITECTURE_OF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_BLOCK = 32


class GgufExport:
    """A model on its way into a GGUF file; raises UserError at once for one that cannot go there."""

    def __init__(
        self, config: Any, entries: Mapping[str, TensorEntry], read: Callable[[str], Tensor], where: str
    ) -> None:
        self._package = gguf_package()
        if not isinstance(config, LlamaConfig) or config.quantization_config:
            raise UserError(
                f"{where}: GGUF export is for float models of {', '.join(_ARCHITECTURE_OF)}; this one is "
                f"{'quantized' if config.quantization_config else config.model_type}"
            )
        self._config, self._entries, self._read = config, entries, read
        self._architecture = _ARCHITECTURE_OF[config.model_type]
        self._heads = config.heads
        if config.rope.rope_type not in ("default", "linear", "llama3"):
            raise UserError(
                f"{where}: rotary positions of type {config.rope.rope_type!r} cannot be exported as GGUF"
            )
        if any(window and window < config.max_position_embeddings for window in config.windows):
            raise UserError(f"{where}: a model with a sliding window cannot be exported as GGUF")
        self._names: dict[str, str] = {}
        for name in entries:
            tied = config.tie_word_embeddings and name == "lm_head.weight"
            # Some writers keep a tied embedding under the head's name only.
            theirs = gguf_name("model.embed_tokens.weight" if tied else name)
            if theirs is None:
                raise UserError(f"{where}: the tensor {name[:100]!r} has no name in GGUF")
            # Readers take the embedding where the head is left out.
            if not tied or "model.embed_tokens.weight" not in entries:
                self._names[name] = theirs

    def write(
        self,
        path: Path,
        name: str,
        tokenizer: tuple[Tokenizer, Mapping[str, Any]] | None,
        progress: Progress = silent,
    ) -> None:
        """Write the file; `tokenizer` comes with what its tokenizer.json holds."""
        writer = self._package.GGUFWriter(path, self._architecture)
        writer.add_name(name)
        self._add_sizes(writer)
        if tokenizer is None:
            writer.add_tokenizer_model("no_vocab")
        else:
            self._add_tokenizer(writer, *tokenizer, path.name)
        numpy_names = {"Q8_0": "uint8", "F16": "float16", "F32": "float32"}
        for ours, theirs in self._names.items():
            shape, kind = self._entries[ours].shape, self._kind(ours)
            stored = (*shape[:-1], shape[-1] // _BLOCK * 34) if kind == "Q8_0" else shape
            dtype = torch.empty(0, dtype=getattr(torch, numpy_names[kind])).numpy().dtype
            size = dtype.itemsize
            for length in stored:
                size *= length
            writer.add_tensor_info(theirs, stored, dtype, size, self._package.GGMLQuantizationType[kind])
        factors = None
        if self._config.rope.rope_type == "llama3":
            factors = factors_of(self._config.rope, self._heads[2])
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(
            "Writing the weights", total=sum(self._entries[name].bytes for name in self._names)
        ) as task:
            for ours in self._names:
                writer.write_tensor_data(self._converted(ours))
                task.advance(self._entries[ours].bytes)
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()

    def _kind(self, name: str) -> str:
        """How a tensor is kept; rows that are no whole number of blocks stay float16."""
        shape = self._entries[name].shape
        if len(shape) < 2:
            return "F32"
        return "Q8_0" if shape[-1] % _BLOCK == 0 else "F16"

    def _converted(self, name: str) -> Any:
        tensor = self._read(name).float()
        if self._architecture in PAIRED:
            for part, heads in (("q_proj", self._heads[0]), ("k_proj", self._heads[1])):
                if f".self_attn.{part}." in name:
                    tensor = pairs_from_halves(tensor, heads)
        numbers = tensor.contiguous().numpy()
        return self._package.quants.quantize(numbers, self._package.GGMLQuantizationType[self._kind(name)])

    def _add_sizes(self, writer: Any) -> None:
        config, (heads, key_heads, head_dim) = self._config, self._heads
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads)
        writer.add_head_count_kv(key_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(config.rope.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(self._package.LlamaFileType.MOSTLY_Q8_0)
        writer.add_quantization_version(self._package.GGML_QUANT_VERSION)
        if config.rope.rope_type == "linear":
            writer.add_rope_scaling_type(self._package.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope.factor)

    def _add_tokenizer(
        self, writer: Any, tokenizer: Tokenizer, described: Mapping[str, Any], where: str
    ) -> None:
        vocabulary = gguf_vocabulary(described, self._config.vocab_size, where)
        writer.add_tokenizer_model(vocabulary.model)
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(list(vocabulary.tokens))
        writer.add_token_types(list(vocabulary.types))
        if vocabulary.model == "llama":
            writer.add_token_scores(list(vocabulary.scores))
        else:
            writer.add_token_merges(list(vocabulary.merges))
        start = tokenizer.encode_prompt("")[:1]
        opening = tokenizer.bos_id if tokenizer.bos_id is not None else self._config.bos_token_id
        if opening is not None:
            writer.add_bos_token_id(opening)
        writer.add_add_bos_token(bool(start) and start[0] == opening)
        if tokenizer.end_ids:
            writer.add_eos_token_id(tokenizer.end_id)
            writer.add_pad_token_id(tokenizer.pad_id)
        if vocabulary.model == "llama":
            writer.add_add_space_prefix(_adds_space(described))
        if tokenizer.chat_template is not None:
            writer.add_chat_template(tokenizer.chat_template)


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json puts a space before the first word."""
    normalizer, pre = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "Prepend" for step in steps) or (
        pre.get("type") == "Metaspace" and pre.get("prepend_scheme") in ("always", "first")
    )
