"""`yunque generate`: let a model go on with a text."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from yunque.cli.show import JSON_OPTION, emit
from yunque.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yunque.generate.step import Step


def generate(
    model: str = typer.Argument(
        help="The model: NAME or model/NAME@VERSION; adapter/NAME is its base with the adapter."
    ),
    prompt: str | None = typer.Argument(None, help="The text to go on with. (default: standard input)"),
    max_new_tokens: int | None = typer.Option(None, help="At most this many tokens. (default: 64)"),
    temperature: float | None = typer.Option(
        None, help="0 takes the likeliest token each time. (default: 0)"
    ),
    top_k: int | None = typer.Option(None, help="Draw among the K likeliest tokens only."),
    top_p: float | None = typer.Option(None, help="Draw among the likeliest tokens that sum to P."),
    min_p: float | None = typer.Option(
        None, help="Draw among tokens at least P times as likely as the best."
    ),
    typical_p: float | None = typer.Option(
        None, help="Draw among tokens of typical information that sum to P."
    ),
    repetition_penalty: float | None = typer.Option(None, help="Above 1: repeat less."),
    presence_penalty: float | None = typer.Option(None, help="Above 0: say new things."),
    frequency_penalty: float | None = typer.Option(None, help="Above 0: say a thing less often."),
    beams: int | None = typer.Option(None, help="Search for the likeliest text with this many side by side."),
    stop: list[str] = typer.Option([], "--stop", help="Stop before this text; may be given several times."),
    seed: int | None = typer.Option(None, help="The same seed draws the same text."),
    json_schema: Path | None = typer.Option(None, help="Answer with JSON that fits the schema in this file."),
    regex: str | None = typer.Option(None, help="Answer with a text that matches this regular expression."),
    choice: list[str] = typer.Option([], help="Answer with one of these texts; give it several times."),
    draft: str | None = typer.Option(
        None, help='A small model that proposes tokens, or "lookup": the same text, sooner.'
    ),
    truncate: bool | None = typer.Option(
        None, "--truncate", help="Read the end of a prompt that is too long.", show_default=False
    ),
    chat: bool = typer.Option(False, "--chat", help="Ask a tuned model, in the format it was tuned on."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Generate text with a model of the workspace."""
    from yunque.configuration import resolve
    from yunque.generate.config import GenerationConfig
    from yunque.generate.conversation import encode_prompt
    from yunque.generate.engine import Engine
    from yunque.workspace import Workspace

    config = resolve(
        GenerationConfig,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        num_beams=beams,
        stop=stop or None,
        seed=seed,
        format=_format(json_schema, regex, choice),
        truncate=truncate,
    )
    text = _prompt() if prompt is None else prompt
    engine = Engine.open(Workspace.open(), model, draft)
    if chat:
        ids = encode_prompt(engine.tokenizer, engine.model, [("user", text)])
    else:
        ids = engine.tokenizer.encode_prompt(text)
    _write(engine.name, engine.stream(ids, config), len(ids), as_json)


def _prompt() -> str:
    if sys.stdin.isatty():
        raise UserError("give the prompt as an argument, or on standard input")
    return sys.stdin.read()


def _write(model: str, steps: "Iterator[Step]", prompt_tokens: int, as_json: bool) -> None:
    """Show the text as it comes, or everything as JSON at the end."""
    pieces: list[str] = []
    tokens, finish_reason = 0, None
    for step in steps:
        tokens, finish_reason = tokens + 1, step.finish_reason
        pieces.append(step.text)
        if not as_json:
            sys.stdout.write(step.text)
            sys.stdout.flush()
    emit(
        {
            "model": model,
            "text": "".join(pieces),
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
        },
        as_json,
        lambda console: console.print(),
    )


def _format(json_schema: Path | None, regex: str | None, choice: list[str]) -> dict[str, Any] | None:
    """The form that was asked for, as a setting."""
    if sum(map(bool, (json_schema, regex, choice))) > 1:
        raise UserError("an answer has one form: give one of --json-schema, --regex and --choice")
    if regex:
        return {"kind": "regex", "pattern": regex}
    if choice:
        return {"kind": "choice", "options": choice}
    if json_schema is None:
        return None
    try:
        return {"kind": "json", "json_schema": json.loads(json_schema.read_text(encoding="utf-8"))}
    except OSError as error:
        raise UserError(f"{json_schema} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{json_schema} is no JSON: {error}") from None
