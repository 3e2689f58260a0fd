"""What an answer earns: by a reward model, by a Python function of the user's, or by a simple rule that is built in.

A Python function is named `module:function` or `path/to/file.py:function`, takes the prompt and an answer as text and
gives a number. Naming it runs the user's code, with the user's rights.
"""

import hashlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from yunque.data.language import detect_language
from yunque.data.preferences import Message
from yunque.errors import UserError
from yunque.generate.conversation import spoken
from yunque.model.scored import ScoredModel, is_reward_model, load_reward_model
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.objectives.reward import judged_text
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

_TOGETHER = 16
# Words that an answer may have at no cost to its brevity.
_FREE_WORDS = 12

Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[float]]
"""Takes prompts and an answer to each; gives a number for each answer."""


@dataclass(frozen=True)
class Reward:
    """How answers are judged. `identity` are facts that change when the judgement does; `parents` are models of the
    workspace that it comes from."""

    judge: Judge
    identity: Mapping[str, Any]
    parents: tuple[Artifact, ...] = field(default=())


def _same_language(prompt: str, answer: str) -> float:
    """1 where prompt and answer are in the same language, Spanish or English; 0 otherwise."""
    language = detect_language(answer)
    return float(language != "und" and language == detect_language(prompt))


def _brief(prompt: str, answer: str) -> float:
    """1 for an answer of at most 12 words, less the longer it is; 0 for none at all."""
    del prompt
    words = len(answer.split())
    return min(1.0, _FREE_WORDS / words) if words else 0.0


BUILT_IN: Mapping[str, Callable[[str, str], float]] = {"brief": _brief, "language": _same_language}


def open_reward(workspace: Workspace, name: str) -> Reward:
    """The reward that a person names: a built-in one, `module:function`, or a reward model of the workspace.

    Raises UserError where there is none of that name.
    """
    if name in BUILT_IN:
        return Reward(_each(BUILT_IN[name], name), {"built_in": name})
    if ":" in name:
        function, source = _function(name)
        hashed = {"source": sha256_of(source)} if source else {}
        return Reward(_each(function, name), {"function": name, **hashed})
    artifact = workspace.find(name, "model")
    if artifact is None:
        raise UserError(
            f"reward: {name!r} is not a reward model of the workspace, nor one of {', '.join(BUILT_IN)}, nor a "
            "Python function (module:function)"
        )
    files = workspace.files(artifact)
    if not is_reward_model(files):
        raise UserError(f"reward: {artifact.ref} is no reward model (`yunque align reward` makes one)")
    judge = _by_model(load_reward_model(files, torch.float32), tokenizer_of(workspace, artifact))
    return Reward(judge, {"model": artifact.ref, "hash": artifact.hash}, (artifact,))


def _function(name: str) -> tuple[Callable[[str, str], float], Path | None]:
    place, _, attribute = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module does at import
        raise UserError(f"reward: {place} cannot be imported ({type(error).__name__}: {error})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"reward: {place} has no function {attribute!r}")
    file = getattr(module, "__file__", None)
    return function, Path(file) if file else None


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"reward: {path}: no such file")
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_reward_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import(place: str) -> Any:
    # A console command does not look in the current folder, where the user's file is.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    finally:
        sys.path.remove(here)


def _each(function: Callable[[str, str], float], name: str) -> Judge:
    """A judge that asks a function about one answer at a time."""

    def judge(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        return [
            _number(function, name, spoken(prompt), answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return judge


def _number(function: Callable[[str, str], float], name: str, prompt: str, answer: str) -> float:
    try:
        value = function(prompt, answer)
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"reward: {name} failed on the answer {answer[:80]!r} ({type(error).__name__}: {error})"
        ) from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"reward: {name} gave {str(value)[:80]!r} for the answer {answer[:80]!r}: it must give a number"
        )
    return number


def _by_model(model: ScoredModel, tokenizer: Tokenizer) -> Judge:
    context = model.config.context

    @torch.inference_mode()
    def judge(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        texts = [
            judged_text(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        if context is not None and any(len(text) > context for text in texts):
            raise UserError(
                f"reward: a prompt and its answer are longer than the reward model's context of {context} tokens: "
                "make max_new_tokens smaller"
            )
        scores = list[float]()
        for start in range(0, len(texts), _TOGETHER):
            scores += model.text_scores(texts[start : start + _TOGETHER]).tolist()
        return scores

    return judge
