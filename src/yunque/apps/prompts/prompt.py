"""A prompt: a file read, checked, and filled with inputs. What an input holds is data in every place."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from yunque.apps.prompts.definition import Example, Input, PromptDefinition, check_filled, schema_for
from yunque.apps.prompts.front_matter import FrontMatter, read_front_matter
from yunque.apps.prompts.rendering import TemplateFault, fill
from yunque.apps.prompts.sections import Section, check_sections, read_sections, spoken, used_names
from yunque.apps.structured import check_schema, schema_fault
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Message
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name

FILE = "prompt.yaml"


@dataclass(frozen=True)
class Rendered:
    """A prompt that was filled: what a model is asked, the language it was taken in, and a hash of the whole.

    The hash (SHA-256, hexadecimal) is that of the messages alone: the same conversation has the same hash always.
    """

    messages: tuple[Message, ...]
    hash: str
    language: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as its file describes it; `where` names the file or artifact it came from, `source` is its text."""

    definition: PromptDefinition
    sections: tuple[Section, ...]
    source: str
    where: str

    @property
    def name(self) -> str:
        """What it is called."""
        return self.definition.name

    @property
    def inputs(self) -> dict[str, Input]:
        """Its inputs by name."""
        return self.definition.inputs

    @property
    def languages(self) -> list[str]:
        """The languages that it has texts in."""
        return self.definition.languages

    @property
    def answer(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer; None where it is text."""
        return self.definition.answer

    @property
    def generation(self) -> GenerationConfig:
        """How the answer is generated."""
        return self.definition.generation

    @property
    def examples(self) -> list[Example]:
        """Those in its file."""
        return self.definition.examples

    def unknown_answer(self, language: str) -> str:
        """What is said when the answer is not known."""
        return self.definition.unknown_answer(language)

    def unused_inputs(self) -> list[str]:
        """Inputs that no template uses: what is given for them changes nothing."""
        used = used_names(self.sections)
        return [name for name in self.inputs if name not in used]

    def language_for(self, language: str | None) -> str:
        """`language` where the prompt has texts in it, else its first."""
        return language if language in self.languages else self.languages[0]

    def render(
        self,
        values: Mapping[str, Any],
        language: str | None = None,
        examples: Sequence[Example] | None = None,
    ) -> Rendered:
        """Fill the prompt. `examples` replace its own choice of examples.

        They stand before the last thing that the user says, each asked as that is. Raises UserError for inputs that
        are missing, unknown or of another type, and for a template that fails or takes too long.
        """
        spoken_language = self.language_for(language)
        sections = spoken(self.sections, spoken_language)
        filled = self.definition.checked(values, self.where)
        shown = self._chosen(filled, spoken_language) if examples is None else examples
        last = max(place for place, section in enumerate(sections) if section.role == "user")
        asked: list[tuple[Section, Mapping[str, Any], str | None]] = []
        for place, section in enumerate(sections):
            if place == last:
                for example in shown:
                    given = self.definition.checked(example.inputs, f"{self.where}: an example")
                    asked.append((section, given, example.text))
            asked.append((section, filled, None))
        return _rendered(self._filled(asked, filled, spoken_language), spoken_language)

    def with_examples(self, examples: Sequence[Example]) -> "Prompt":
        """The same prompt with other examples, all of them shown; comments among its fields are lost."""
        matter = read_front_matter(self.source, self.where)
        values = {
            name: value for name, value in matter.values.items() if name not in ("examples", "shots", "by")
        }
        values["examples"] = [example.model_dump(mode="json", exclude_none=True) for example in examples]
        head = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=110)
        return prompt_from_text(f"---\n{head}---\n{matter.body}", self.where)

    @cached_property
    def _similar(self) -> Any:
        from yunque.apps.prompts.similar import SimilarExamples

        return SimilarExamples(self.examples)

    def _chosen(self, values: Mapping[str, Any], language: str) -> list[Example]:
        definition = self.definition
        fitting = [one for one in definition.examples if one.language in (None, language)]
        most = len(fitting) if definition.shots is None else definition.shots
        if definition.by == "similarity" and fitting and most < len(fitting):
            chosen: list[Example] = self._similar.nearest(values, most, language)
            return chosen
        return fitting[:most]

    def _filled(
        self,
        asked: Sequence[tuple[Section, Mapping[str, Any], str | None]],
        inputs: Mapping[str, Any],
        language: str,
    ) -> list[Message]:
        schema = ""
        if self.answer is not None:
            schema = json.dumps(schema_for(self.answer, inputs), ensure_ascii=False)
        given = {"unknown": self.unknown_answer(language), "language": language, "schema": schema}
        try:
            texts = fill([(section.template, {**given, **values}) for section, values, _ in asked])
        except TemplateFault as fault:
            line = asked[fault.number][0].line + (fault.line or 1) - 1
            raise UserError(f"{self.where}:{line}: the template {fault}") from None
        messages: list[Message] = []
        for text, (section, _, answer) in zip(texts, asked, strict=True):
            messages.append(Message(section.role, text))
            if answer is not None:
                messages.append(Message("assistant", answer))
        return messages


def _rendered(messages: Sequence[Message], language: str) -> Rendered:
    return Rendered(tuple(messages), hash_of(messages), language)


def hash_of(messages: Sequence[Message]) -> str:
    """The SHA-256 of a conversation, its borders included: a text with a role mark in it is not two messages."""
    said = [[message.role, message.content] for message in messages]
    return hashlib.sha256(json.dumps(said, ensure_ascii=True).encode()).hexdigest()


def read_prompt(path: Path) -> Prompt:
    """The prompt in a file; raises UserError that names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    return prompt_from_text(text, str(path))


def prompt_from_text(text: str, where: str) -> Prompt:
    """The prompt that a text describes; raises UserError that names `where` and the line."""
    matter = read_front_matter(text, where)
    definition = _definition(matter, where)
    try:
        checked_name(definition.name)
        if definition.answer is not None:
            check_schema(definition.answer)
            check_filled(definition.answer, definition.inputs)
    except UserError as error:
        field = "name" if definition.answer is None or "cannot be a name" in str(error) else "answer"
        raise UserError(f"{where}:{matter.line([field])}: {error}") from None
    sections = read_sections(matter.body, matter.body_line, where)
    check_sections(sections, list(definition.inputs), definition.languages, where)
    prompt = Prompt(definition, sections, text, where)
    for number, example in enumerate(definition.examples):
        line = matter.line(["examples", number])
        check_example(prompt, example, f"{where}:{line}")
    return prompt


def _definition(matter: FrontMatter, where: str) -> PromptDefinition:
    try:
        return PromptDefinition.model_validate(matter.values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = [part for part in problem["loc"] if part != "[key]"]
        said = problem["msg"].removeprefix("Value error, ")
        field = ".".join(map(str, place))
        raise UserError(f"{where}:{matter.line(place)}: {field + ': ' if field else ''}{said}") from None


def check_example(prompt: Prompt, example: Example, where: str) -> None:
    """Raises UserError where an example's inputs are not the prompt's, or its answer has not the prompt's form."""
    given = prompt.definition.checked(example.inputs, f"{where}: example")
    if prompt.answer is None:
        if not isinstance(example.answer, str):
            raise UserError(f"{where}: the example's answer must be a text")
    elif fault := schema_fault(example.answer, schema_for(prompt.answer, given)):
        raise UserError(f"{where}: the example's answer has not the answer's form ({fault})")


def add_prompt(workspace: Workspace, path: Path) -> Artifact:
    """Keep the prompt of a file as `prompt/NAME`; the same file twice is one version."""
    return put_prompt(workspace, read_prompt(path))


def put_prompt(
    workspace: Workspace,
    prompt: Prompt,
    files: Mapping[str, bytes] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Artifact:
    """Keep a prompt, with other files beside it (a task's test set)."""
    kept: dict[str, bytes | Path] = {FILE: prompt.source.encode(), **(files or {})}
    config = {"description": prompt.definition.description, "languages": prompt.languages}
    return workspace.put("prompt", prompt.name, kept, config=config, figures=figures)


def load_prompt(workspace: Workspace, ref: str) -> tuple[Prompt, Artifact]:
    """The prompt artifact called `ref`; raises UserError when there is none."""
    artifact = workspace.get(ref, "prompt")
    text = workspace.file(artifact, FILE).read_text(encoding="utf-8")
    return replace(prompt_from_text(text, artifact.ref), where=artifact.ref), artifact
