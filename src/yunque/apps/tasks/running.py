"""A task at work: one text in, one checked answer out; a text that is too long is read in pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yunque.apps.prompts import Prompt
from yunque.apps.prompts.definition import schema_for
from yunque.apps.structured import NoValidAnswer, ask_for
from yunque.apps.tasks.calls import Calls
from yunque.apps.tasks.definition import Task
from yunque.apps.tasks.sentences import halves
from yunque.apps.tasks.steps import STEPS, Step
from yunque.data.language import detect_language
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Completion, ContextOverflow, Cost, LanguageModel, Message, Usage
from yunque.progress import Progress, silent
from yunque.progress import Task as Bar
from yunque.workspace import Workspace

ATTEMPTS = 3
UNKNOWN = "und"
"""A language that is not known: the answer is to have that of the text, whichever it is."""
_MOST_PIECES = 2000
_MOST_ROUNDS = 8
_SHORT = 400


@dataclass(frozen=True)
class TaskAnswer:
    """What came of a task: `value` as JSON, `text` for a person; `notes` say what a user should know.

    `usage` and `cost` are those of all `calls`; `prompt_hashes` are of the calls, in their order.
    """

    task: str
    value: Any
    text: str
    language: str
    model: str
    usage: Usage
    cost: Cost | None
    calls: int
    notes: tuple[str, ...]
    prompt_hashes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def run_task(
    task: Task,
    model: LanguageModel,
    values: Mapping[str, Any],
    language: str | None = None,
    workspace: Workspace | None = None,
    send_personal_data: bool = False,
    attempts: int = ATTEMPTS,
    progress: Progress = silent,
) -> TaskAnswer:
    """Do a task. The answer is in the language of the input, unless `language` (two letters) names another.

    With a workspace every call is logged. Raises UserError for inputs that are wrong or too long for the task,
    NoValidAnswer, ModelUnavailable.
    """
    filled = task.prompt.definition.checked(values, task.name)
    if not str(filled[task.settings.main]).strip():
        raise UserError(f"{task.name}: the {task.settings.main} is empty")
    spoken = language or _language_of(filled, task)
    if task.settings.step == "translation":
        # Without a word about it, Spanish becomes English and the rest Spanish.
        target = values.get("to") or language or ("en" if spoken == "es" else "es")
        filled, spoken = {**filled, "to": target}, str(target)
    calls = Calls(model, f"task/{task.ref}", workspace, send_personal_data)
    run = _Run(task, calls, spoken, attempts)
    with progress(task.name, total=len(str(filled[task.settings.main] or "")) or None) as bar:
        run.bar = bar
        own = _OWN_WAYS.get(task.settings.step)
        value, text, notes = own(run, filled) if own else run.whole(filled)
    models = dict.fromkeys(completion.model for completion in calls.completions)
    said = dict.fromkeys([*run.notes, *notes, *(one.note for one in calls.completions if one.note)])
    return TaskAnswer(
        task.name, value, text, spoken, ", ".join(models) or model.name, calls.usage, calls.cost,
        len(calls.completions), tuple(said), tuple(calls.hashes),
    )  # fmt: skip


class _Run:
    """One task on one text."""

    def __init__(self, task: Task, calls: Calls, language: str, attempts: int) -> None:
        self.task = task
        self.calls = calls
        self.language = language
        self.attempts = attempts
        self.notes: list[str] = []
        self.bar: Bar | None = None
        self._step: Step = STEPS[task.settings.step]
        self._too_long: int | None = None

    def whole(self, values: Mapping[str, Any]) -> tuple[Any, str, Sequence[str]]:
        """The finished answer, as a text too, and notes."""
        value = self._answer(values, 0)
        finished = self._step.finish(value, values)
        return finished.value, self._step.show(finished.value, values), finished.notes

    def _answer(self, values: Mapping[str, Any], round: int) -> Any:
        """The answer to a text of any length."""
        main = self.task.settings.main
        text = values[main]
        try:
            return self._one(values, text)
        except ContextOverflow as overflow:
            if self.task.settings.long == "refuse" or not isinstance(text, str):
                raise UserError(
                    f"{self.task.name}: the {main} with the prompt is too long for {self.calls.model.name}, and "
                    f"this task cannot be done in pieces: take a shorter one, or a model with a longer context "
                    f"({overflow})"
                ) from None
        self._too_long = len(text)
        pieces = self._pieces(values, text)
        answers = [answer for _, answer in pieces]
        if self.task.settings.long == "join":
            return "".join(f"{answer.strip()}{_space_after(piece)}" for piece, answer in pieces).strip()
        if self.task.settings.long != "reduce":
            return self._step.together(answers)
        joined = self._step.together([self._step.show(answer, values) for answer in answers])
        if len(joined) > 0.9 * len(text) or round >= _MOST_ROUNDS:
            raise UserError(
                f"{self.task.name}: what {self.calls.model.name} writes of the pieces is as long as the text: it "
                "cannot sum up a text that is longer than its context"
            )
        self.notes.append(f"read in {len(answers)} pieces")
        self._too_long = None
        return self._answer({**values, main: joined}, round + 1)

    def _pieces(self, values: Mapping[str, Any], text: str) -> list[tuple[str, Any]]:
        """The pieces of a text with their answers, each as long as the model has room for."""
        waiting, answers = [text], list[tuple[str, Any]]()
        main = self.task.settings.main
        while waiting:
            piece = waiting.pop(0)
            try:
                if self._too_long is not None and len(piece) >= self._too_long:
                    raise ContextOverflow("longer than a piece that was too long", 0)
                answers.append((piece, self._one({**values, main: piece}, piece)))
                continue
            except ContextOverflow:
                self._too_long = min(len(piece), self._too_long or len(piece))
            parts = halves(piece)
            if parts is None or len(piece) < 40 or len(answers) + len(waiting) > _MOST_PIECES:
                raise UserError(
                    f"{self.task.name}: the prompt itself does not fit in the context of {self.calls.model.name}: "
                    "take a model with a longer one"
                ) from None
            waiting[:0] = parts
        if self.task.settings.long != "reduce":
            self.notes.append(f"read in {len(answers)} pieces")
        return answers

    def _one(self, values: Mapping[str, Any], text: Any) -> Any:
        """The checked answer to a text that fits; raises ContextOverflow where it does not."""
        try:
            answer = self.ask(self.task.prompt, values)
        except NoValidAnswer as none:
            if self._was_cut(none.completions[-1:], text):
                raise ContextOverflow("there was no room for the whole answer", 0) from None
            raise
        if self._was_cut(self.calls.completions[-1:], text):
            self.notes.pop()
            raise ContextOverflow("there was no room for the whole answer", 0)
        if self.bar:
            self.bar.advance(len(text) if isinstance(text, str) else 1)
        return answer

    def _was_cut(self, last: Sequence[Completion], text: Any) -> bool:
        """Whether an answer that grows with the text broke off: half of the text has a shorter one."""
        grows = self.task.settings.long in ("join", "merge") and isinstance(text, str) and len(text) > _SHORT
        return grows and any(completion.finish_reason == "length" for completion in last)

    def ask(self, prompt: Prompt, values: Mapping[str, Any]) -> Any:
        """One question to the model, its answer validated and checked; raises ContextOverflow."""
        config = prompt.generation
        try:
            return self._asked(prompt, values, config)
        except ContextOverflow as overflow:
            if overflow.room < self.task.settings.least_tokens or overflow.room >= config.max_new_tokens:
                raise
            shorter = config.model_copy(update={"max_new_tokens": overflow.room})
            return self._asked(prompt, values, shorter)

    def _asked(self, prompt: Prompt, values: Mapping[str, Any], config: GenerationConfig) -> Any:
        known = self.language in prompt.languages
        base = "en" if "en" in prompt.languages else None
        messages = list(prompt.render(values, self.language if known else base).messages)
        if not known and self._step is not STEPS["translation"]:
            which = (
                "of the text" if self.language == UNKNOWN else f"with the code {self.language!r} (ISO 639-1)"
            )
            asked = f"{messages[-1].content}\n\nWrite the answer in the language {which}."
            messages[-1] = Message(messages[-1].role, asked)

        before = len(self.calls.completions)

        def check(value: Any) -> str | None:
            fault = self._step.check(value, values, self.language)
            wished = None if fault else self._step.wish(value, values, self.language)
            if wished and len(self.calls.completions) - before >= self.attempts:
                self.notes.append(wished)
                return None
            return fault or wished

        if prompt.answer is not None:
            schema = schema_for(prompt.answer, values)
            made = ask_for(self.calls, messages, schema, config, self.attempts, self.calls.restore, check)
            self._tell_of_cuts(made.completions[-1])
            return made.value
        return self._text(messages, config, check)

    def _text(self, messages: list[Message], config: GenerationConfig, check: Any) -> str:
        """A text that the check lets through; asked again with what is wrong."""
        said, errors, made = messages, list[str](), list[Completion]()
        again = messages[-1]
        for _ in range(self.attempts):
            try:
                completion = self.calls.chat(said, config)
            except ContextOverflow:
                if not made:
                    raise
                # Without the answer that was wrong.
                said = [*messages[:-1], Message("user", f"{messages[-1].content}\n\n{again.content}")]
                try:
                    completion = self.calls.chat(said, config)
                except ContextOverflow:
                    break
            made.append(completion)
            text = self.calls.restore(completion.text.strip())
            fault = check(text)
            if fault is None:
                self._tell_of_cuts(completion)
                return text
            errors.append(fault)
            again = Message(
                "user", f"That answer cannot be used: {fault}. Answer again, with the text alone."
            )
            said = [*messages, Message("assistant", completion.text[:4000] or "-"), again]
        raise NoValidAnswer(errors, made)

    def _tell_of_cuts(self, completion: Completion) -> None:
        if completion.finish_reason == "length":
            self.notes.append(f"an answer was cut after {completion.usage.completion_tokens} tokens")


def _space_after(piece: str) -> str:
    """The white space that a piece was cut with."""
    return piece[len(piece.rstrip()) :] or " "


def _language_of(values: Mapping[str, Any], task: Task) -> str:
    """The language of the input; `und` for one that is neither Spanish nor English, or says too little."""
    for name in dict.fromkeys((task.settings.main, task.file_input)):
        text = values[name]
        found = detect_language(text) if isinstance(text, str) else UNKNOWN
        if found in task.prompt.languages:
            return found
    # Code is written in English words whoever writes it.
    return task.prompt.languages[0] if task.settings.main == "code" else UNKNOWN


def _docstrings(run: _Run, values: Mapping[str, Any]) -> tuple[Any, str, Sequence[str]]:
    from yunque.apps.tasks.documenting import write_docstrings

    return write_docstrings(run.ask, run.task.prompt, values, run.bar)


def _unit_tests(run: _Run, values: Mapping[str, Any]) -> tuple[Any, str, Sequence[str]]:
    from yunque.apps.tasks.testing import write_unit_tests

    return write_unit_tests(run.ask, run.task.prompt, values, run.attempts)


def _ask(run: _Run, values: Mapping[str, Any]) -> tuple[Any, str, Sequence[str]]:
    from yunque.apps.tasks.asking import answer_from

    return answer_from(run.ask, run.task.prompt, values, run.language)


_OWN_WAYS = {"docstrings": _docstrings, "unit-tests": _unit_tests, "ask": _ask}
