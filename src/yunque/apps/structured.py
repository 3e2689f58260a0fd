"""Structured answers: a value that fits a JSON Schema or a pydantic model, or none at all.

A model that runs here writes nothing else (its tokens are constrained); another is asked for the form. Either way the
answer is read strictly and validated, the model is asked again with what was wrong, and when it still does not fit
the caller gets NoValidAnswer: an invalid value never comes out.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import jsonschema_rs
from pydantic import BaseModel, PydanticUserError, ValidationError

from yunque.apps.json_reading import NotJson, read_json
from yunque.data.personal import Finding, find_personal_data
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, JsonFormat
from yunque.llm.face import Completion, ContextOverflow, Cost, Message, ModelUnavailable, Usage

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

_MOST_QUOTED = 4000
_MOST_FAULT = 500
_DRAFT = re.compile(
    r"https?://json-schema\.org/(draft-0[467]/schema|draft/(2019-09|2020-12)/schema|schema)#?"
)
_IN_WORDS = (
    "Answer with JSON only: one value, no text and no code fence around it. "
    "It must fit this JSON Schema:\n{schema}"
)
_AGAIN = "That answer cannot be used: {fault}. Answer again, {how}. It must fit this JSON Schema:\n{schema}"


class Answering(Protocol):
    """What is asked here: any LanguageModel, or one with something around it."""

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        ...


def total_usage(completions: Sequence[Completion]) -> Usage:
    """The tokens of several calls together."""
    return sum((one.usage for one in completions), Usage(0, 0))


def total_cost(completions: Sequence[Completion]) -> Cost | None:
    """The cost of several calls together; None where that of one is not known."""
    total = Cost(0.0)
    for completion in completions:
        if completion.cost is None:
            return None
        total += completion.cost
    return total


@dataclass(frozen=True)
class Structured(Generic[T]):
    """A value that was validated, and the calls that it took.

    `truncated`: the answer ended because it had no more room, so that a text in the value may be cut.
    """

    value: T
    completions: tuple[Completion, ...]

    @property
    def attempts(self) -> int:
        """How often the model answered."""
        return len(self.completions)

    @property
    def truncated(self) -> bool:
        """Whether the answer ended for want of room."""
        return self.completions[-1].finish_reason == "length"

    @property
    def usage(self) -> Usage:
        """The tokens of all attempts."""
        return total_usage(self.completions)

    @property
    def cost(self) -> Cost | None:
        """The cost of all attempts; None where it is not known."""
        return total_cost(self.completions)


class NoValidAnswer(Exception):
    """No answer of a model had the form asked for. `errors` says what was wrong with each (it may quote them);
    `completions` are the calls that were made, and have to be paid."""

    def __init__(self, errors: Sequence[str], completions: Sequence[Completion]) -> None:
        times = "once" if len(errors) == 1 else f"{len(errors)} times"
        name = completions[-1].model if completions else "the model"
        last = shortened(errors[-1], _MOST_FAULT) if errors else "it did not answer"
        super().__init__(f"{name} was asked {times} and gave no valid answer ({last})")
        self.errors = tuple(errors)
        self.completions = tuple(completions)

    @property
    def usage(self) -> Usage:
        """The tokens of all attempts."""
        return total_usage(self.completions)

    @property
    def cost(self) -> Cost | None:
        """The cost of all attempts; None where it is not known."""
        return total_cost(self.completions)


@overload
def ask_for(
    model: Answering,
    messages: Sequence[Message],
    schema: type[ModelT],
    config: GenerationConfig = ...,
    attempts: int = ...,
    restore: Callable[[str], str] | None = ...,
    check: Callable[[Any], str | None] | None = ...,
) -> Structured[ModelT]: ...


@overload
def ask_for(
    model: Answering,
    messages: Sequence[Message],
    schema: dict[str, Any],
    config: GenerationConfig = ...,
    attempts: int = ...,
    restore: Callable[[str], str] | None = ...,
    check: Callable[[Any], str | None] | None = ...,
) -> Structured[Any]: ...


def ask_for(
    model: Answering,
    messages: Sequence[Message],
    schema: type[BaseModel] | dict[str, Any],
    config: GenerationConfig = GenerationConfig(max_new_tokens=512),
    attempts: int = 3,
    restore: Callable[[str], str] | None = None,
    check: Callable[[Any], str | None] | None = None,
) -> Structured[Any]:
    """Ask for a value of this form; at most `attempts` answers are asked for, the first one counted.

    With a pydantic class its validators decide too, and the value is an instance. `restore` is applied to every text
    in an answer before it is validated (personal data put back). `check` says what else is wrong with a value, in a
    sentence for the model, or None. Raises NoValidAnswer; what the model itself raises
    (ModelUnavailable, ContextOverflow at the first call) goes through; UserError for a schema that is none.
    """
    if attempts < 1:
        raise UserError("attempts: at least one answer must be asked for")
    form = _schema_of(schema) if isinstance(schema, type) else schema
    validator = check_schema(form)
    asking = _Asking(model, list(messages), form, config)
    errors: list[str] = []
    for _ in range(attempts):
        try:
            completion = asking.ask(errors)
        except ContextOverflow:
            if not asking.completions:
                raise
            errors.append("there was no room to ask again")
            break
        try:
            value = _read(completion, restore)
            _check_value(validator, value)
            made = _instance(schema, value) if isinstance(schema, type) else value
            if check and (wrong := check(made)):
                raise NotJson(wrong)
        except NotJson as fault:
            errors.append(str(fault))
            continue
        return Structured(made, tuple(asking.completions))
    raise NoValidAnswer(errors, asking.completions)


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    try:
        return model.model_json_schema()
    except PydanticUserError as error:
        raise UserError(f"{model.__name__} has no JSON Schema ({str(error).splitlines()[0]})") from None


class _Asking:
    """One question and the answers to it so far."""

    def __init__(
        self, model: Answering, messages: list[Message], schema: dict[str, Any], config: GenerationConfig
    ) -> None:
        self._model = model
        self._messages = messages
        self._schema = json.dumps(schema, ensure_ascii=False)
        self._free = config.model_copy(update={"format": None})
        self._formed = config.model_copy(update={"format": JsonFormat(json_schema=schema)})
        self._takes_format = True
        self.completions: list[Completion] = []

    def ask(self, errors: Sequence[str]) -> Completion:
        """The next answer, after what was wrong with the last; raises ContextOverflow and ModelUnavailable."""
        completion = self._answer(errors)
        self.completions.append(completion)
        return completion

    def _answer(self, errors: Sequence[str]) -> Completion:
        if not self._takes_format:
            return self._chat(errors, self._free, in_words=True)
        try:
            return self._chat(errors, self._formed, in_words=False)
        except ContextOverflow:
            raise
        except UserError as error:
            # The form is more than a grammar can promise: it is asked for, and validated all the same.
            if not str(error).startswith("format"):
                raise
        except ModelUnavailable as error:
            if error.again or self.completions or not _refused(error):
                raise
        self._takes_format = False
        return self._chat(errors, self._free, in_words=True)

    def _chat(self, errors: Sequence[str], config: GenerationConfig, in_words: bool) -> Completion:
        said = [*self._messages]
        if in_words:
            said.append(Message("user", _IN_WORDS.format(schema=self._schema)))
            said = _joined(said)
        if not errors:
            return self._model.chat(said, config)
        last = self.completions[-1]
        how = "with JSON only: one value and nothing around it"
        if last.finish_reason == "length":
            how = "more briefly, " + how
            config = config.model_copy(update={"max_new_tokens": 2 * config.max_new_tokens})
        again = Message(
            "user", _AGAIN.format(fault=shortened(errors[-1], _MOST_FAULT), how=how, schema=self._schema)
        )
        spoken = (
            [*said, Message("assistant", last.text[:_MOST_QUOTED]), again] if last.text else [*said, again]
        )
        try:
            return self._model.chat(_joined(spoken), config)
        except ContextOverflow as overflow:
            # Without the answer that was wrong, and as long as there is room for.
            shorter = config.model_copy(
                update={"max_new_tokens": max(1, min(config.max_new_tokens, overflow.room))}
            )
            try:
                return self._model.chat(_joined([*said, again]), config)
            except ContextOverflow as still:
                if still.room < 1:
                    raise
                shorter = config.model_copy(update={"max_new_tokens": still.room})
            return self._model.chat(_joined([*said, again]), shorter)


def _refused(error: ModelUnavailable) -> bool:
    """Whether a server answered and did not like the request (not: it was not there, or refused the key)."""
    said = str(error)
    return any(f"status {status}" in said for status in (400, 415, 422, 501)) or "format" in said


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Two messages of the user in a row as one: some chat templates refuse them."""
    made: list[Message] = []
    for message in messages:
        if made and made[-1].role == message.role == "user":
            made[-1] = Message("user", f"{made[-1].content}\n\n{message.content}")
        else:
            made.append(message)
    return made


def _read(completion: Completion, restore: Callable[[str], str] | None) -> Any:
    value = read_json(completion.text, cut=completion.finish_reason == "length")
    return value if restore is None else restored(value, restore)


def restored(value: Any, restore: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, names too."""
    if isinstance(value, str):
        return restore(value)
    if isinstance(value, list):
        return [restored(one, restore) for one in value]
    if isinstance(value, dict):
        return {restore(name): restored(one, restore) for name, one in value.items()}
    return value


def shortened(text: str, most: int) -> str:
    """The beginning of a text, at most so long. It never ends inside personal data: the rest of it would not be
    found any more, and would go to a remote model in the clear."""
    if len(text) <= most:
        return text
    findings = find_personal_data(text)
    cut = min([found.start for found in findings if found.start < most < found.end], default=most)
    # Some data is known by what stands after it; without that it goes too.
    while lost := [one.start for one in findings if one.end <= cut and not _is_found(one, text[:cut])]:
        cut = min(lost)
    return text[:cut]


def _is_found(finding: Finding, text: str) -> bool:
    """Whether the data is still found in a part of the text that begins where the text does."""
    return any(one.start <= finding.start and finding.end <= one.end for one in find_personal_data(text))


def check_schema(schema: Any) -> jsonschema_rs.Validator:
    """A validator of values; raises UserError where the schema is none, or would have to be fetched."""
    try:
        named = schema.get("$schema") if isinstance(schema, dict) else None
        if isinstance(named, str) and not _DRAFT.fullmatch(named):
            known = "draft 4, 6, 7, 2019-09 or 2020-12"
            raise UserError(f"the JSON Schema cannot be used: $schema {named[:200]!r} is not one of {known}")
        # Without a registry of ours it would fetch what it does not know.
        jsonschema_rs.meta.validate(schema, registry=jsonschema_rs.Registry([], retriever=_offline))
        return jsonschema_rs.validator_for(schema, validate_formats=True, retriever=_offline)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(str(part) for part in error.instance_path)
        raise UserError(f"the JSON Schema is not one: {place or 'its root'}: {error.message}") from None
    except (jsonschema_rs.ReferencingError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the JSON Schema cannot be used ({str(error).splitlines()[0][:200]})") from None


def schema_fault(value: Any, schema: Any) -> str | None:
    """What is wrong with a value that should fit a schema, in a sentence; None where nothing is."""
    try:
        _check_value(check_schema(schema), value)
    except NotJson as fault:
        return str(fault)
    return None


def _offline(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched: put the schema in one piece")


def _check_value(validator: Any, value: Any) -> None:
    try:
        faults = [_fault(fault) for fault, _ in zip(validator.iter_errors(value), range(3), strict=False)]
    except (ValueError, RecursionError, OverflowError) as error:
        raise NotJson(f"the answer cannot be validated ({shortened(str(error), 200)})") from None
    if faults:
        raise NotJson("; ".join(faults))


def _fault(fault: Any) -> str:
    place = "/".join(str(part) for part in fault.instance_path)
    return f"{place or 'the whole'}: {shortened(fault.message, _MOST_FAULT)}"


def _instance(schema: type[BaseModel], value: Any) -> BaseModel:
    try:
        # As JSON: in strict models too a date or a tuple may be written the way JSON can.
        return schema.model_validate_json(json.dumps(value))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)[:3]
        said = [f"{'/'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in problems]
        raise NotJson("; ".join(said)) from None
