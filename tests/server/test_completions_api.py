"""/v1/completions through OpenAI's client, with a real (tiny) model: scoring, batches, log-probabilities."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from yunque.generate.config import GenerationConfig
from yunque.llm import open_model
from yunque.llm.local import LocalModel
from yunque.server.served import Settings
from yunque.server.served_model import ServedModel
from yunque.workspace import Artifact, Workspace
from yunque.workspace.api_keys import Terms, create_api_key, key_usage

TEXT = "Cada pasajero puede llevar una maleta. ¿Sí?"


@pytest.fixture
def model(workspace: Workspace, put_tiny_model: Callable[..., Artifact]) -> LocalModel:
    put_tiny_model(workspace)
    opened = open_model(workspace, "mini")
    assert isinstance(opened, LocalModel)
    return opened


@pytest.fixture
def running(model: LocalModel, start: Callable[..., Any], workspace: Workspace) -> Any:
    del model
    return start(workspace)


@pytest.fixture
def ask(running: Any) -> Callable[..., Any]:
    client = running.client()

    def asked(**more: Any) -> Any:
        return client.completions.create(**{"model": "mini", "max_tokens": 6, "temperature": 0, **more})

    return asked


def test_every_form_of_a_prompt_is_understood(ask: Any, model: LocalModel) -> None:
    ids = model.tokenizer.encode_prompt(TEXT)
    alone = ask(prompt=TEXT).choices[0].text
    assert ask(prompt=[TEXT]).choices[0].text == alone
    assert ask(prompt=ids).choices[0].text == alone
    assert ask(prompt=[ids]).choices[0].text == alone
    assert ask(prompt=ids[:-3]).choices[0].text != alone


def test_several_prompts_are_answered_with_the_indices_that_openai_gives_them(ask: Any) -> None:
    prompts = ["Cada", "¿Qué opina?", "Each passenger"]
    alone = [ask(prompt=prompt) for prompt in prompts]
    together = ask(prompt=prompts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    drawn = ask(prompt=prompts[:2], n=2, temperature=1, seed=3)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2, 3]
    second = ask(prompt=prompts[1], n=2, temperature=1, seed=3)
    assert [choice.text for choice in drawn.choices[2:]] == [choice.text for choice in second.choices]
    assert drawn.choices[0].text != drawn.choices[1].text


def test_a_stream_of_several_is_the_same_texts(ask: Any) -> None:
    asked = {"prompt": ["Cada", "Each"], "n": 2, "temperature": 1, "seed": 5, "logprobs": 2}
    whole = ask(**asked)
    chunks = list(ask(**asked, stream=True, stream_options={"include_usage": True}))
    texts, offsets = dict.fromkeys(range(4), ""), {index: [] for index in range(4)}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
        assert chunk.usage is None
    assert list(texts.values()) == [choice.text for choice in whole.choices]
    assert list(offsets.values()) == [choice.logprobs.text_offset for choice in whole.choices]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_legacy_logprobs_stand_where_their_tokens_are(ask: Any) -> None:
    choice = ask(prompt=TEXT, echo=True, logprobs=3, max_tokens=4).choices[0]
    told = choice.logprobs
    assert choice.text.startswith(TEXT)
    assert (
        len({len(told.tokens), len(told.token_logprobs), len(told.top_logprobs), len(told.text_offset)}) == 1
    )
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        if not token.startswith(("bytes:", "<|")):
            assert choice.text[offset : offset + len(token)] == token
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert any(token.startswith("bytes:\\x") for token in told.tokens)  # half of a letter with an accent
    for value, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
        assert 3 <= len(top) <= 4 and value <= max(top.values()) <= 0
        assert sum(math.exp(each) for each in top.values()) <= 1 + 1e-6
    assert ask(prompt=TEXT, max_tokens=2).choices[0].logprobs is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scores_as_evaluation_harnesses_ask_for_them_are_our_own(
    running: Any, model: LocalModel, batch: int, max_tokens: int
) -> None:
    """What lm_eval's `local-completions` sends (ids, echo, logprobs) and how it reads the answer."""
    tokenizer = model.tokenizer
    contexts = [tokenizer.encode_prompt(text) for text in ("¿Qué opina el texto?", "Each", "Cada pasajero")]
    endings = [tokenizer.encode(text) for text in (" Es positivo.", " passenger may", " puede llevar una")]
    requests = [context + ending for context, ending in zip(contexts, endings, strict=True)][:batch]
    body = {"model": "mini", "prompt": requests, "temperature": 0, "max_tokens": max_tokens}
    body |= {"logprobs": 1, "seed": 1234, "echo": True}
    answer = httpx.post(f"{running.url}/completions", json=body, timeout=60).json()
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, context, ending in zip(choices, contexts, endings, strict=False):
        written = len(choice["logprobs"]["token_logprobs"]) - len(context) - len(ending)
        assert written == max_tokens
        stop = None if written == 0 else -1
        told = choice["logprobs"]["token_logprobs"][len(context) : stop]
        assert sum(told) == pytest.approx(model.engine.score(context, ending), abs=1e-4)
        top = choice["logprobs"]["top_logprobs"][len(context) : stop]
        greedy = all(value == max(best.values()) for value, best in zip(told, top, strict=True))
        assert not greedy  # a random model would have said something else
        # The control: a shifted window is another sum.
        assert sum(choice["logprobs"]["token_logprobs"][len(context) - 1 : -2]) != pytest.approx(sum(told))
    greedy_ids = list(contexts[0])
    for step in model.engine.stream(contexts[0], GenerationConfig(max_new_tokens=3)):
        greedy_ids.append(step.token_id)
    body |= {"prompt": [greedy_ids], "max_tokens": 1}
    logprobs = httpx.post(f"{running.url}/completions", json=body).json()["choices"][0]["logprobs"]
    for value, best in list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[-4:-1]:
        assert value == max(best.values())


def test_a_prompt_alone_is_scored_and_given_back(ask: Any) -> None:
    answer = ask(prompt=TEXT, echo=True, max_tokens=0, logprobs=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "length")
    assert answer.usage.completion_tokens == 0
    assert all(len(top) == 1 for top in answer.choices[0].logprobs.top_logprobs[1:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": []}, "at least 1"),
        ({"prompt": [[]]}, "at least 1"),
        ({"prompt": [1.5]}, "integer"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "greater"),
        ({"prompt": [2**40]}, "less than or equal"),
        ({"prompt": [299_999]}, "token 299999 does not exist"),
        ({"max_tokens": 0}, "nothing would be written"),
        ({"suffix": "fin"}, "not supported"),
        ({"best_of": 2, "n": 3}, "best_of is 2"),
        ({"best_of": 3, "stream": True}, "cannot be streamed"),
        ({"logprobs": True}, "integer"),
        ({"logprobs": 21}, "less than or equal to 20"),
        ({"prompt": ["a"] * 100, "n": 100}, "at most 2048"),
        ({"prompt": "x " * 500}, "tokens"),
        ({"max_tokens": 1000}, "tokens fit"),
        ({"logit_bias": {"299999": 1}}, "token 299999 does not exist"),
    ],
)
def test_what_cannot_be_is_400(ask: Any, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(**{"prompt": "Cada", "extra_body": {}, **wrong})


def test_too_long_a_prompt_says_how_much_fits_and_is_cut_where_that_is_asked_for(
    ask: Any, model: LocalModel
) -> None:
    long = model.tokenizer.encode_prompt("maleta " * 200)
    with pytest.raises(openai.BadRequestError, match="at most 127 tokens") as caught:
        ask(prompt=long)
    assert caught.value.code == "context_length_exceeded"
    cut = ask(prompt=long, extra_body={"truncate": True})
    assert cut.choices[0].text == ask(prompt=long[-122:]).choices[0].text
    assert ask(prompt=long, max_tokens=None, extra_body={"truncate": True}).usage.completion_tokens <= 64


def test_a_bias_moves_the_choice_and_a_stop_token_ends_it(ask: Any, model: LocalModel) -> None:
    (token,) = model.tokenizer.encode("7")
    biased = ask(prompt="Cada", logit_bias={str(token): 100})
    assert biased.choices[0].text == "777777"
    ended = ask(prompt="Cada", logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]})
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")


def test_the_log_has_every_prompt_of_a_request(ask: Any, workspace: Workspace, model: LocalModel) -> None:
    from yunque.workspace import read_calls

    ask(prompt=[model.tokenizer.encode_prompt("Cada maleta"), model.tokenizer.encode_prompt("Each bag")])
    calls = read_calls(workspace.catalog.connection())
    assert {call.question for call in calls} == {"Cada maleta", "Each bag"}


@pytest.mark.usefixtures("running")
def test_of_many_prompts_some_are_begun_and_all_are_answered(
    ask: Any, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = [0], [0]
    real = LocalModel.stream_complete

    def counting(self: LocalModel, *given: Any) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        chunks = real(self, *given)

        def counted() -> Any:
            yield from chunks
            under_way[0] -= 1

        return counted()

    monkeypatch.setattr(LocalModel, "stream_complete", counting)
    prompts = [model.tokenizer.encode_prompt(f"Cada {number}") for number in range(40)]
    together = ask(prompt=prompts, max_tokens=3)
    assert most == [16] and under_way == [0]
    assert [choice.index for choice in together.choices] == list(range(40))
    alone = ask(prompt=prompts[39], max_tokens=3)
    assert together.choices[39].text == alone.choices[0].text
    assert together.usage.prompt_tokens == sum(map(len, prompts))
    # What does not fit is told before anything is written, wherever it stands.
    most[0] = 0
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(prompt=[*prompts, prompts[0] * 100], max_tokens=3)
    assert most == [0]


def test_candidates_that_are_not_given_are_counted(ask: Any, workspace: Workspace) -> None:
    from yunque.workspace import read_calls

    asked = {"prompt": "Cada", "temperature": 1, "max_tokens": 5, "extra_body": {"ignore_eos": True}}
    assert ask(**asked, n=2, best_of=4).usage.completion_tokens == 20
    assert ask(**asked, n=2).usage.completion_tokens == 10
    assert {call.completion_tokens for call in read_calls(workspace.catalog.connection())} == {20, 10}


@pytest.mark.usefixtures("model")
def test_the_budget_pays_for_every_candidate(workspace: Workspace, start: Callable[..., Any]) -> None:
    with workspace.catalog.transaction() as connection:
        key, secret = create_api_key(connection, "k", Terms(tokens_a_day=1000))
    client = start(workspace, keys_required=True).client(secret)
    asked: Any = {"model": "mini", "prompt": "Cada", "max_tokens": 5, "extra_body": {"ignore_eos": True}}
    usage = client.completions.create(**asked, temperature=1, best_of=6).usage
    assert usage.completion_tokens == 30
    assert key_usage(workspace.catalog.connection(), key.id).tokens == usage.total_tokens


def test_a_prompt_that_is_cut_counts_as_it_is_read(ask: Any, model: LocalModel) -> None:
    long = model.tokenizer.encode_prompt("maleta " * 200)
    assert ask(prompt=long, max_tokens=6, extra_body={"truncate": True}).usage.prompt_tokens == 122
    with pytest.raises(openai.BadRequestError, match=f"the prompt has {len(long)} tokens") as caught:
        ask(prompt=long, max_tokens=500, extra_body={"truncate": True})
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_that_broke_off_is_logged_with_what_it_took(
    workspace: Workspace, model: LocalModel
) -> None:
    from yunque.workspace import read_calls

    settings = Settings(GenerationConfig(max_new_tokens=20, ignore_end=True), length_asked=True)
    pieces = ServedModel(workspace, "model/mini@1", model).complete("Cada", settings)
    for _ in range(3):
        next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    (call,) = read_calls(workspace.catalog.connection())
    assert (call.prompt_tokens, call.completion_tokens) == (len(model.tokenizer.encode_prompt("Cada")), 3)
