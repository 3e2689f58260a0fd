"""A question about a document: its own words are quoted, and code looks whether they are there."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from yunque.apps.prompts import Prompt
from yunque.apps.tasks.documenting import Ask
from yunque.apps.tasks.sentences import halves, words_of
from yunque.apps.tasks.steps import places_of
from yunque.llm.face import ContextOverflow

_SHORTEST = 200
_LEAST_QUOTED = 2
_NUMBER = re.compile(r"\d+")


def answer_from(
    ask: Ask, prompt: Prompt, values: Mapping[str, Any], language: str
) -> tuple[Any, str, Sequence[str]]:
    """The answer with the place of its quotation, or that it is not known.

    An answer whose quotation is not in the document, or that has a number which neither the document nor the question
    has, is not given. A document that is too long is read in pieces until
    one answers.
    """
    document = str(values["document"])
    waiting, read, notes = [document], 0, list[str]()
    unknown = {
        "known": False,
        "answer": prompt.unknown_answer(language),
        "quote": "",
        "start": None,
        "end": None,
    }
    while waiting:
        piece = waiting.pop(0)
        try:
            answer = ask(prompt, {**values, "document": piece})
        except ContextOverflow:
            parts = halves(piece)
            if parts is None or len(piece) < _SHORTEST:
                raise
            waiting[:0] = parts
            continue
        read += 1
        if not answer["known"]:
            continue
        places = places_of(answer["quote"], document)
        if fault := _unfounded(answer, places, f"{values['question']} {document}"):
            notes.append(f"an answer was dropped: {fault}")
            continue
        start, end = places[0]
        value = {**answer, "quote": document[start:end], "start": start, "end": end}
        return value, f"{answer['answer']}\n\n«{value['quote']}»", [*notes, *_pieces(read, waiting)]
    return unknown, str(unknown["answer"]), [*notes, *_pieces(read, waiting)]


def _unfounded(answer: Mapping[str, Any], places: Sequence[tuple[int, int]], known: str) -> str:
    """Why an answer does not rest on the document; "" where it does."""
    if not places:
        return "what it quotes is not in the document"
    if len(words_of(answer["quote"])) < _LEAST_QUOTED and answer["quote"].strip() != answer["answer"].strip():
        return "what it quotes is too short to say anything"
    made_up = set(_NUMBER.findall(answer["answer"])) - set(_NUMBER.findall(known))
    return f"its number {min(made_up)} is not in the document" if made_up else ""


def _pieces(read: int, waiting: Sequence[str]) -> list[str]:
    return [f"{read} pieces read"] if read > 1 or waiting else []
