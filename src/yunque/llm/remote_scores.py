"""How likely an answer is to a model behind a server that tells it: vLLM, and another Yunque.

A conversation is tokenized by the server itself, as it would be asked; then prompt and answer are only read
(`echo`, with no token written), and the log-probabilities of the answer's tokens, and of its end, are added up.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yunque.errors import UserError
from yunque.llm.face import Message, ModelUnavailable
from yunque.llm.openai_form import asked_messages

if TYPE_CHECKING:
    from yunque.llm.remote import RemoteModel


def score(model: "RemoteModel", messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
    """The log-likelihood (nats) of each answer, with its end; raises UserError where the API does not tell it."""
    provider = model.at.provider
    if provider is not None and provider.name not in ("vllm", "llamacpp"):
        raise UserError(
            f"{model.name}: {provider.name} does not tell how likely a text is: ask a model of the workspace, "
            "vLLM or another Yunque"
        )
    root = model.at.base_url.removesuffix("/v1")
    prompt = _tokens(model, root, {"messages": asked_messages(messages), "add_generation_prompt": True})
    end = _end(model, root)
    likelihoods = []
    for answer in answers:
        ids = _tokens(model, root, {"prompt": answer, "add_special_tokens": False})
        likelihoods.append(_likelihood(model, prompt, [*ids, *end]))
    return likelihoods


def _tokens(model: "RemoteModel", root: str, asked: dict[str, Any]) -> list[int]:
    try:
        body = model.ask(f"{root}/tokenize", {"model": model.at.model, **asked})
    except ModelUnavailable as error:
        if "status 404" in str(error) or "status 405" in str(error):
            raise UserError(
                f"{model.name}: this server does not tell how likely a text is: it has no /tokenize"
            ) from None
        raise
    ids = body.get("tokens") if isinstance(body, dict) else None
    if not isinstance(ids, list) or not all(isinstance(id, int) for id in ids):
        raise model.unavailable("answered JSON that holds no tokens", again=True)
    return ids


def _end(model: "RemoteModel", root: str) -> list[int]:
    """The token that ends an answer."""
    try:
        body = model.ask(f"{root}/tokenizer_info", None)
    except ModelUnavailable as error:
        raise UserError(
            f"{model.name}: cannot learn how an answer ends ({error}): "
            "start vLLM with --enable-tokenizer-info-endpoint"
        ) from None
    name = body.get("eos_token") if isinstance(body, dict) else None
    name = name.get("content") if isinstance(name, dict) else name
    if not isinstance(name, str) or not name:
        raise UserError(f"{model.name}: its tokenizer names no token that ends an answer")
    return _tokens(model, root, {"prompt": name, "add_special_tokens": False})


def _likelihood(model: "RemoteModel", prompt: list[int], answer: list[int]) -> float:
    asked = {
        "model": model.at.model,
        "prompt": prompt + answer,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
        "temperature": 0,
    }
    body = model.ask("/completions", asked)
    try:
        told = body["choices"][0]["logprobs"]["token_logprobs"]
        logprobs = [float(value) for value in told[len(prompt) : len(prompt) + len(answer)]]
        if len(told) < len(prompt) + len(answer):
            raise ValueError("too few")
    except (KeyError, IndexError, TypeError, ValueError):
        raise model.unavailable("did not tell the log-probability of each token", again=True) from None
    return sum(logprobs)
