"""Writing with a runner, as a scheduler would: texts that join and leave, prompts in chunks; and models for it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yunque.generate.runner import Runner, Text, Work
from yunque.model import LanguageModel, new_model, quantize_model
from yunque.model.checkpoint import parse_configuration

VOCAB_SIZE = 60
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
}
_FALCON = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"} | _LLAMA,
    "mistral": {"model_type": "mistral", "sliding_window": 6} | _LLAMA,
    "qwen2": {"model_type": "qwen2"} | _LLAMA,
    "qwen3": {"model_type": "qwen3"} | _LLAMA,
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "falcon": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon with alibi": _FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False},
    "t5": {"model_type": "t5"} | _T5,
    "mt5": {"model_type": "mt5"} | _T5,
    "transformer": {"model_type": "transformer", "hidden_size": 32, "intermediate_size": 48}
    | {"num_attention_heads": 4, "dropout": 0.0, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "rnn": {"model_type": "rnn", "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False},
    "rnn-seq2seq": {"model_type": "rnn-seq2seq", "hidden_size": 32, "num_hidden_layers": 2},
}


def small_model(family: str, kind: str | None = None, **changes: Any) -> LanguageModel:
    """A model of this family, as int8 or int4 if asked, with random weights that let every part of it show."""
    model = new_model(parse_configuration({"vocab_size": VOCAB_SIZE, **FIELDS[family], **changes}, family))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(weight.numel())
            # A recurrent network falls into one word sooner.
            noise = torch.randn(weight.shape, generator=generator) * (0.8 if "rnn" in family else 0.25)
            weight.copy_(1 + noise if name.endswith("norm.weight") else noise)
    model = model.eval().requires_grad_(False)
    return model if kind is None else quantize_model(model, kind, group_size=32)


def prompts(count: int = 16, longest: int = 50, seed: int = 0) -> list[list[int]]:
    """Random texts of ragged length; the last begin as the first does."""
    numbers = random.Random(seed)
    made = [
        [numbers.randrange(3, VOCAB_SIZE) for _ in range(numbers.randint(1, longest))] for _ in range(count)
    ]
    made[0] = [numbers.randrange(3, VOCAB_SIZE) for _ in range(longest)]
    return [*made[:-2], [*made[0][:40], 5], made[0]]


@dataclass
class Writer:
    """A text that is written greedily, from step `joins` on; `scores` are those of every token that it wrote."""

    prompt: list[int]
    count: int
    adapter: str | None = None
    joins: int = 0
    written: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    text: Text | None = None
    pending: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return len(self.written) == self.count

    def work(self, chunk: int) -> Work:
        if len(self.pending) > chunk:
            return Work(self.text, self.pending[:chunk], 0)
        return Work(self.text, self.pending, 1)

    def take(self, work: Work, scores_WV: Tensor) -> None:
        assert scores_WV.dtype == torch.float32 and len(scores_WV) == work.wanted
        self.pending = self.pending[len(work.ids) :]
        if work.wanted:
            self.scores.append(scores_WV[-1])
            self.written.append(int(scores_WV[-1].argmax()))
            self.pending = self.written[-1:]


def write(runner: Runner, writers: Sequence[Writer], chunk: int = 32) -> list[list[int]]:
    """Write all of them side by side; each is closed as soon as it is over."""
    step = 0
    while not all(writer.over for writer in writers):
        works = []
        for writer in writers:
            if writer.text is None and writer.joins <= step:
                writer.text = runner.open(writer.prompt, writer.count, writer.adapter)
                writer.pending = list(writer.text.unread)
            if writer.text is not None and not writer.over:
                works.append((writer, writer.work(chunk)))
        for (writer, work), scores in zip(works, runner.run([work for _, work in works]), strict=True):
            writer.take(work, scores)
            if writer.over:
                writer.text.close()
        step += 1
    return [writer.written for writer in writers]


def alone(runner: Runner, prompt: list[int], count: int, adapter: str | None = None) -> Writer:
    """A text that is written with nothing else under way."""
    writer = Writer(prompt, count, adapter)
    write(runner, [writer])
    return writer
