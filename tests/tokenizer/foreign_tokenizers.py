"""Tiny tokenizers of other makers, made here: no test needs a file from elsewhere."""

import json
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as AnyTokenizer

TEXTS = [
    "El equipaje de mano no puede pesar más de diez kilos; la niña viaja con su perro.",
    "The quick brown fox jumps over the lazy dog, and it's 2,024 already!",
    "def pesar(kilos):\n    return kilos <= 10  # ¿más?\n",
    "Soy uno con la fuerza y la fuerza está conmigo 👩‍👩‍👧 漢字",
] * 10
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
CHATML = """{{ bos_token }}{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def byte_level(words: str | None = None) -> AnyTokenizer:
    """A byte-level BPE with the special tokens of SPECIAL behind its vocabulary, and `<think>`, not special."""
    inner = AnyTokenizer(models.BPE())
    inner.pre_tokenizer = (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if words
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    inner.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return inner


def write_foreign(
    folder: Path, template: str | list[dict[str, str]] | None = CHATML, **config: object
) -> Path:
    """A folder as Hugging Face writes it."""
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single=["<|bos|>", "$A"],
        pair=["<|bos|>", "$A", "$B"],
        special_tokens=[("<|bos|>", inner.token_to_id("<|bos|>"))],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(inner.to_str(), encoding="utf-8")
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        **config,
    }
    if template is not None:
        told["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


AWKWARD = [
    "",
    " ",
    "  dos  espacios  ",
    "\n\n\t x  \r\n",
    "Ñandú, pingüino, ¿qué tal? ¡Adiós!",
    unicodedata.normalize("NFD", "Ñandú pingüino"),
    "👩‍👩‍👧‍👦🇪🇸 漢字かな",
    "\u202e\ufeff\u200b",
    "def f(x):\n\treturn x  # ¿más?\n\n",
    "it's I'LL 1234567890 3.141592",
    "a<sep>b @@ <0x41> </s> <s> <unk>",
]
