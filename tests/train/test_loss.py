import math

import pytest
import torch

from yunque.data.row import Row, Source
from yunque.errors import UserError
from yunque.model import Llama, LlamaConfig
from yunque.tokenizer import Tokenizer
from yunque.train import evaluate_loss


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["el perro y el gato"] * 9, 270)


@pytest.fixture(scope="module")
def model(tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Llama(config, torch.Generator().manual_seed(0)).eval().requires_grad_(False)


def row(text: str) -> Row:
    return Row("id", text, "es", Source("f", "0", "1"), "g")


def by_hand(model, tokenizer, texts: list[str]) -> tuple[float, int]:
    """One token at a time, each with its own forward over the piece before it."""
    total, count = 0.0, 0
    for text in texts:
        ids = [tokenizer.end_id, *tokenizer.encode(text), tokenizer.end_id]
        for place in range(1, len(ids)):
            start = (place - 1) // 16 * 16
            scores = model(torch.tensor([ids[start:place]]))[0, -1].double()
            total += math.log(scores.exp().sum()) - float(scores[ids[place]])
            count += 1
    return total, count


TEXTS = ["el perro", "El gato y el perro duermen en la casa de la niña.", "", "y"]


def test_it_is_the_mean_over_tokens_of_minus_the_log_probability(model, tokenizer) -> None:
    total, count = by_hand(model, tokenizer, [text for text in TEXTS if text])
    assert evaluate_loss(model, tokenizer, map(row, TEXTS)) == pytest.approx(total / count, rel=1e-4)
    assert evaluate_loss(model, tokenizer, map(row, TEXTS), batch_size=1) == pytest.approx(
        total / count, rel=1e-4
    )
    # Negative control: a mean over rows is another number.
    by_row = [by_hand(model, tokenizer, [text]) for text in TEXTS if text]
    assert sum(t / c for t, c in by_row) / 3 != pytest.approx(total / count, rel=1e-4)


def test_it_stops_after_the_tokens_asked_for(model, tokenizer) -> None:
    first = [tokenizer.decode(tokenizer.encode(TEXTS[1])[:9])]
    ids = tokenizer.encode(TEXTS[1])
    scores = model(torch.tensor([[tokenizer.end_id, *ids[:8]]]))[0].log_softmax(-1)
    expected = -sum(float(scores[place, id]) for place, id in enumerate(ids[:9])) / 9
    assert first
    assert evaluate_loss(model, tokenizer, [row(TEXTS[1]), row("x")], max_tokens=9) == pytest.approx(
        expected, rel=1e-4
    )


def test_no_text_is_an_error(model, tokenizer) -> None:
    with pytest.raises(UserError, match="no text"):
        evaluate_loss(model, tokenizer, [row("")])
