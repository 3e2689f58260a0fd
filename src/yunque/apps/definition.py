"""An app as a YAML file, and as an artifact."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from yunque.apps.retrieval.extractive import Relevance
from yunque.apps.retrieval.words import LANGUAGES, Language
from yunque.configuration import Settings, read_yaml, validated
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.workspace import Artifact, Workspace

FILE = "app.yaml"
RESOLVED = "app.json"
"""The same definition with its defaults: JSON is read a hundred times faster than YAML, at every question."""
_UNKNOWN = {"es": "No lo sé. Los documentos no lo dicen.", "en": "I don't know. The documents do not say."}
_BLOCKED = {"es": "No puedo hacer eso.", "en": "I can't do that."}

Texts = dict[Language, str]
SynonymGroup = dict[Language, list[str]]


class Knowledge(Settings):
    """Where an app's answers come from: an index, how many passages a model is given, and when it knows."""

    index: str
    top_k: int = Field(default=6, ge=1, le=50)
    relevance: Relevance = Relevance()
    synonyms: list[SynonymGroup] = Field(default=[])


class Prompt(Settings):
    """Templates (jinja2, sandboxed) for each language: `question`, `passages` and `unknown` are filled in."""

    system: Texts = Field(default={})
    user: Texts


class CheckSettings(Settings):
    """A check of the guard and where it looks; `limit` is for the check `length`, in characters."""

    check: Literal["injection", "personal_data", "prompt_leak", "echo", "length"]
    stages: list[Literal["input", "context", "output"]] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)


class Policy(Settings):
    """What is done with personal data before anything is logged or leaves this machine."""

    personal_data: Literal["redact"] = "redact"


class AppDefinition(Settings):
    """The whole of an app. `model: null` answers with quotations; an app without knowledge needs a model."""

    name: str
    description: Texts = Field(default={})
    languages: list[Language] = Field(default=["es", "en"], min_length=1)
    model: str | None = None
    fallbacks: list[str] = Field(default=[])
    knowledge: Knowledge | None = None
    prompt: Prompt
    unknown: Texts = Field(default={})
    blocked: Texts = Field(default={})
    guards: list[CheckSettings] = Field(min_length=1)
    policy: Policy = Policy()
    generation: GenerationConfig = GenerationConfig()

    def unknown_answer(self, language: Language) -> str:
        """What is said when the documents do not answer."""
        return self.unknown.get(language, _UNKNOWN[language])

    def blocked_answer(self, language: Language) -> str:
        """What is said when the guard stops a question or an answer."""
        return self.blocked.get(language, _BLOCKED[language])


def read_definition(path: Path) -> AppDefinition:
    """The app in a YAML file; raises UserError that names the file, and the line or field."""
    definition = validated(AppDefinition, read_yaml(path), str(path))
    for name, texts in (("prompt.system", definition.prompt.system), ("prompt.user", definition.prompt.user)):
        for language, template in texts.items():
            _check_template(template, f"{path}: {name}.{language}")
    if not definition.prompt.user:
        raise UserError(f"{path}: prompt.user: needs a template for at least one of {', '.join(LANGUAGES)}")
    for number, group in enumerate(definition.knowledge.synonyms if definition.knowledge else []):
        if not any(group.values()):
            raise UserError(f"{path}: knowledge.synonyms.{number}: the group is empty")
    return definition


def _check_template(template: str, where: str) -> None:
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    try:
        names = meta.find_undeclared_variables(environment.parse(template))
    except TemplateError as error:
        raise UserError(f"{where}: not a valid template ({error})") from None
    if unknown := names - {"question", "passages", "unknown"}:
        raise UserError(
            f"{where}: knows nothing called {', '.join(sorted(unknown))} (it may use question, passages and unknown)"
        )


def add_app(workspace: Workspace, yaml_path: Path) -> Artifact:
    """Keep the app of a YAML file as `app/NAME`; its parents are its index and its model, when that is local."""
    definition = read_definition(yaml_path)
    parents: list[Artifact] = []
    if definition.knowledge:
        parents.append(workspace.get(definition.knowledge.index, "index"))
    if definition.model and "://" not in definition.model:
        parents.append(workspace.get(definition.model, "model"))
    files = {FILE: yaml_path.read_bytes(), RESOLVED: definition.model_dump_json(indent=1).encode()}
    config: dict[str, Any] = {"name": definition.name, "model": definition.model}
    return workspace.put("app", definition.name, files, parents, config)


def load_definition(workspace: Workspace, ref: str) -> tuple[AppDefinition, Artifact]:
    """The definition of the app artifact called `ref`."""
    artifact = workspace.get(ref, "app")
    values = json.loads(workspace.file(artifact, RESOLVED).read_bytes())
    return validated(AppDefinition, values, artifact.ref), artifact
