"""An app as a YAML file: its fields, and what is wrong with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from yunque.apps.agents.limits import Limits
from yunque.apps.retrieval.extractive import Relevance
from yunque.apps.retrieval.words import Language
from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.cache import CacheSettings
from yunque.settings_file import Place, SettingsFile
from yunque.workspace import Workspace
from yunque.workspace.artifact import checked_name

_UNKNOWN = {"es": "No lo sé. Los documentos no lo dicen.", "en": "I don't know. The documents do not say."}
_BLOCKED = {"es": "No puedo hacer eso.", "en": "I can't do that."}

Texts = dict[Language, str]
SynonymGroup = dict[Language, list[str]]


class Knowledge(Settings):
    """Where an app's answers come from: an index, how many passages a model is given, and when it knows.

    Of passages that only some groups may see, the app finds those of `groups`.
    """

    index: str
    groups: list[str] = Field(default=[])
    top_k: int = Field(default=6, ge=1, le=50)
    relevance: Relevance = Relevance()
    synonyms: list[SynonymGroup] = Field(default=[])


class Prompt(Settings):
    """Templates (jinja2, sandboxed) for each language: `question`, `passages` and `unknown` are filled in.

    Quoting documents, and an agent, need none for the user.
    """

    system: Texts = Field(default={})
    user: Texts = Field(default={})


class AnswerForm(Settings):
    """The JSON Schema that an answer must fit; one that does not after so many `attempts` is refused."""

    json_schema: dict[str, Any] = Field(alias="schema")
    attempts: int = Field(default=3, ge=1, le=10)


class CheckSettings(Settings):
    """A check of the guard and where it looks; `limit` is for the check `length`, in characters."""

    check: Literal["injection", "personal_data", "prompt_leak", "echo", "length"]
    stages: list[Literal["input", "context", "output"]] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)


class Policy(Settings):
    """Where a question may go (`local`: models that run here; or a list of providers), and what happens to personal
    data on the way: it is taken out and put back (redact), refused, or sent. The log never holds any."""

    where: Literal["anywhere", "local"] | tuple[str, ...] = "anywhere"
    personal_data: Literal["redact", "refuse", "send"] = "redact"


class Routing(Settings):
    """How patiently models are asked; see `yunque.llm.router.RouterSettings`. Times are in seconds."""

    context_window_fallbacks: tuple[str, ...] = ()
    local_fallback: str | None = None
    deadline: float | None = Field(default=120.0, gt=0)
    hedge_after: float | None = Field(default=None, ge=0)


class DailyBudget(Settings):
    """What all questions of a day (UTC) may cost together; a call that could pass it is refused before it is made."""

    usd_a_day: float | None = Field(default=None, ge=0)
    tokens_a_day: int | None = Field(default=None, ge=0)


class AgentSettings(Settings):
    """How an app with tools works: whether it divides a question first, and holds its answer against what the tools
    said; and when it stops."""

    plan: bool = True
    check: bool = True
    limits: Limits = Limits()


_LOOKS_AT = {
    "length": ("input", "context", "output"),
    "injection": ("input", "context"),
    "personal_data": ("input", "context", "output"),
    "prompt_leak": ("output",),
    "echo": ("output",),
}
_WITHOUT_EFFECT: dict[str, set[str]] = {
    "documents": set(),
    "prompt": set(),
    "agent": set(),
    "chain": {"prompt", "generation", "unknown"},
}


class AppDefinition(Settings):
    """The whole of an app.

    With `knowledge` it answers from documents (`model: null` quotes them), with `tools` it is an agent, with `steps`
    a chain, else its prompt alone is asked. All but the first need a model.
    """

    name: str
    description: Texts = Field(default={})
    languages: list[Language] = Field(default=["es", "en"], min_length=1)
    model: str | None = None
    fallbacks: list[str] = Field(default=[])
    routing: Routing = Routing()
    budget: DailyBudget | None = None
    cache: CacheSettings | None = None
    knowledge: Knowledge | None = None
    prompt: Prompt = Prompt()
    answer: AnswerForm | None = None
    tools: list[dict[str, Any]] = Field(default=[])
    agent: AgentSettings = AgentSettings()
    steps: list[dict[str, Any]] = Field(default=[])
    memory: str | dict[str, Any] = "none"
    unknown: Texts = Field(default={})
    blocked: Texts = Field(default={})
    guards: list[CheckSettings] = Field(min_length=1)
    policy: Policy = Policy()
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.steps and (self.tools or self.knowledge or self.answer):
            raise ValueError(
                "an app with steps is a chain: it takes no tools, knowledge or answer of its own"
            )
        if self.agent != AgentSettings() and not self.tools:
            raise ValueError("agent is for an app with tools, and this one has none")
        if self.answer and (self.tools or self.knowledge):
            raise ValueError("an answer with a schema is a prompt's: it takes no tools or knowledge")
        asks = self.model or self.fallbacks or not self.knowledge
        if asks and not (self.steps or self.tools or self.prompt.user):
            raise ValueError("the app has nothing to do: give it a prompt.user, tools or steps")
        return self

    @property
    def kind(self) -> str:
        """`documents`, `prompt`, `agent` or `chain`."""
        if self.steps:
            return "chain"
        return "agent" if self.tools else "documents" if self.knowledge else "prompt"

    def unknown_answer(self, language: Language) -> str:
        """What is said when the documents do not answer."""
        return self.unknown.get(language, _UNKNOWN[language])

    def blocked_answer(self, language: Language) -> str:
        """What is said when the guard stops a question or an answer."""
        return self.blocked.get(language, _BLOCKED[language])


def read_definition(path: Path, workspace: Workspace | None = None) -> AppDefinition:
    """The app in a YAML file; prompts that it names are those of the workspace.

    Raises UserError that names the file, and the line and field of every mistake.
    """
    file = SettingsFile(path)
    definition = file.settings(AppDefinition)
    mistakes = [str(mistake) for mistake in _mistakes(file, definition, workspace)]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return definition


def _mistakes(
    file: SettingsFile, definition: AppDefinition, workspace: Workspace | None
) -> Iterator[UserError]:
    """What is wrong with the parts that have a language of their own: templates, tools, steps, memory, names."""
    for place, problem in (*_own_mistakes(definition), *_parts(definition, file.path.parent, workspace)):
        yield file.mistake(place, problem)


def _own_mistakes(definition: AppDefinition) -> Iterator[tuple[Place, str]]:
    try:
        checked_name(definition.name)
    except UserError as error:
        yield ("name",), str(error)
    for name, texts in (("system", definition.prompt.system), ("user", definition.prompt.user)):
        for language, template in texts.items():
            if problem := _template_problem(template):
                yield ("prompt", name, language), problem
    for number, group in enumerate(definition.knowledge.synonyms if definition.knowledge else []):
        if not any(group.values()):
            yield ("knowledge", "synonyms", number), "the group is empty"
    for number, check in enumerate(definition.guards):
        for at, stage in enumerate(check.stages):
            if stage not in _LOOKS_AT[check.check]:
                looks = " and ".join(_LOOKS_AT[check.check])
                yield ("guards", number, "stages", at), f"the check {check.check} looks at the {looks} only"
    given = definition.model_fields_set
    for field in sorted(given & _WITHOUT_EFFECT[definition.kind]):
        yield (field,), f"has no effect in an app of this kind ({definition.kind})"
    if definition.answer and (fault := _schema_problem(definition.answer.json_schema)):
        yield ("answer", "schema"), fault


def _parts(
    definition: AppDefinition, folder: Path, workspace: Workspace | None
) -> Iterator[tuple[Place, str]]:
    """What is wrong with the fields that are read by others, which are loaded where an app has them."""
    if definition.tools:
        from yunque.apps.agents.reading import tool_mistakes

        search = _no_passages if definition.knowledge else None
        for place, problem in tool_mistakes(definition.tools, "tools", folder, search=search):
            yield ("tools", *place), problem
    if definition.steps:
        from yunque.apps.chained import kept_prompts
        from yunque.apps.chains.reading import chain_mistakes

        chain = {"name": definition.name, "model": definition.model, "steps": definition.steps}
        yield from chain_mistakes(chain, "steps", folder, kept_prompts(workspace))
    if definition.memory != "none":
        from yunque.apps.memory import read_policy

        try:
            read_policy(definition.memory, "memory")
        except UserError as error:
            yield ("memory",), str(error).removeprefix("memory: ")


def _no_passages(words: str, k: int) -> Sequence[Any]:
    """Stands for the search in the app's documents while its file is read."""
    del words, k
    return ()


def _schema_problem(schema: dict[str, Any]) -> str:
    """What is wrong with the form of an answer, or nothing."""
    from yunque.apps.structured import check_schema

    try:
        check_schema(schema)
    except UserError as error:
        return str(error)
    return ""


def _template_problem(template: str) -> str:
    """What is wrong with a template, or nothing."""
    from yunque.apps.prompts.rendering import TemplateFault, examine

    try:
        (names,) = examine([template])
    except TemplateFault as fault:
        return f"not a valid template ({fault})"
    unknown = sorted(set(names) - {"question", "passages", "unknown"})
    return (
        f"knows nothing called {', '.join(unknown)} (it may use question, passages and unknown)"
        if unknown
        else ""
    )
