import threading

import pytest
import torch

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.engine import Engine
from yunque.model import Llama, LlamaConfig, quantize_model, save_model
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace

TEXT = "El niño comió piñas 🍍 y el perro comió piñas."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Llama(config, torch.Generator().manual_seed(0)).eval().requires_grad_(False)


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(model, tokenizer, "model/x@1")


class Recited(Llama):
    """A model that says the ids it was given, whatever it reads."""

    def __init__(self, config: LlamaConfig, ids: list[int]) -> None:
        super().__init__(config)
        self.ids, self.said = ids, 0
        self.embedding.logits = self.recite

    def recite(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.config.vocab_size)
        logits[..., self.ids[self.said]] = 9
        self.said += 1
        return logits


def reciting(tokenizer: Tokenizer, model: Llama, text: str) -> Engine:
    return Engine(
        Recited(model.config, [*tokenizer.encode(text), tokenizer.end_id]).eval(), tokenizer, "model/r@1"
    )


def text_of(steps) -> str:
    return "".join(step.text for step in steps)


def test_greedy_decoding_equals_whole_forwards(engine, model) -> None:
    prompt = engine.tokenizer.encode_prompt("El perro")
    steps = list(engine.stream(prompt, GenerationConfig(max_new_tokens=20)))
    ids = list(prompt)
    for step in steps:
        scores = model(torch.tensor([ids]))[0, -1]
        scores[list(engine.tokenizer.mark_ids)] = float("-inf")
        assert step.token_id == int(scores.argmax())
        ids.append(step.token_id)
    assert all(step.finish_reason is None for step in steps[:-1])
    assert steps[-1].finish_reason == ("stop" if ids[-1] == engine.tokenizer.end_id else "length")


def test_it_stops_at_the_end_token_which_is_no_text(tokenizer, model) -> None:
    steps = list(reciting(tokenizer, model, TEXT).stream([9], GenerationConfig(max_new_tokens=90)))
    assert text_of(steps) == TEXT
    assert (steps[-1].token_id, steps[-1].finish_reason) == (tokenizer.end_id, "stop")


def test_each_step_is_a_token_and_no_character_is_broken(tokenizer, model) -> None:
    steps = list(reciting(tokenizer, model, "ü🍍漢").stream([9], GenerationConfig(max_new_tokens=90)))
    assert len(steps) == len(tokenizer.encode("ü🍍漢")) + 1
    assert [step.text for step in steps if step.text] == ["ü", "🍍", "漢"]


@pytest.mark.parametrize("stop", ["comió", "ió pi", " piñas 🍍", "perro"])
def test_a_stop_string_across_tokens_ends_the_text_before_it(tokenizer, model, stop: str) -> None:
    config = GenerationConfig(max_new_tokens=90, stop=("nowhere", stop))
    steps = list(reciting(tokenizer, model, TEXT).stream([9], config))
    assert text_of(steps) == TEXT[: TEXT.index(stop)]
    assert steps[-1].finish_reason == "stop"


def test_at_the_length_limit_nothing_held_back_is_lost(tokenizer, model) -> None:
    count = len(tokenizer.encode("El niño"))
    config = GenerationConfig(max_new_tokens=count, stop=("ño comería",))
    steps = list(reciting(tokenizer, model, TEXT).stream([9], config))
    assert text_of(steps) == "El niño"
    assert steps[-1].finish_reason == "length" and len(steps) == count


def test_a_seed_repeats_a_text_and_another_seed_does_not(engine) -> None:
    def ids(seed: int) -> list[int]:
        config = GenerationConfig(max_new_tokens=30, temperature=1.5, seed=seed)
        return [step.token_id for step in engine.stream([9, 8], config)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_marks_of_the_chat_format_are_never_written(engine) -> None:
    config = GenerationConfig(max_new_tokens=100, temperature=2.0, seed=0)
    drawn = {step.token_id for _ in range(3) for step in engine.stream([9], config)}
    assert not drawn & set(engine.tokenizer.mark_ids)


def test_too_long_a_request_says_how_many_tokens_fit(engine) -> None:
    with pytest.raises(UserError, match="at most 28 tokens fit"):
        engine.stream([5] * 100, GenerationConfig(max_new_tokens=29))
    assert len(list(engine.stream([5] * 100, GenerationConfig(max_new_tokens=28)))) <= 28
    with pytest.raises(UserError, match="at most 127 tokens"):
        engine.stream([5] * 128, GenerationConfig(max_new_tokens=1))


def test_score_is_the_sum_of_log_probabilities(engine, model) -> None:
    prompt, continuation = [9, 8, 7], [30, 31, 32]
    scores = model(torch.tensor([prompt + continuation]))[0].double().log_softmax(-1)
    expected = sum(float(scores[2 + place, id]) for place, id in enumerate(continuation))
    assert engine.score(prompt, continuation) == pytest.approx(expected, rel=1e-5)
    shifted = sum(float(scores[1 + place, id]) for place, id in enumerate(continuation))
    assert shifted != pytest.approx(expected, rel=1e-2)
    with pytest.raises(UserError, match="neither may be empty"):
        engine.score([], [1])


def test_threads_do_not_disturb_one_another(engine) -> None:
    prompts = [[9, n] for n in range(6, 14)]
    config = GenerationConfig(max_new_tokens=15)
    alone = [text_of(engine.stream(prompt, config)) for prompt in prompts]
    together: dict[int, str] = {}

    def ask(number: int) -> None:
        together[number] = text_of(engine.stream(prompts[number], config))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(prompts))] == alone


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_it_opens_a_model_of_the_workspace(tmp_path, model, tokenizer, kind: str) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    net = quantize_model(model) if kind == "int8" else model
    files = {**save_model(net), "tokenizer.json": tokenizer.to_json().encode()}
    workspace.put("model", "m", files)
    opened = Engine.open(workspace, "m")
    config = GenerationConfig(max_new_tokens=12)
    ids = [step.token_id for step in opened.stream([9], config)]
    assert opened.name == "model/m@1"
    assert ids == [step.token_id for step in Engine(net, tokenizer, "x").stream([9], config)]
