"""An app as a YAML file: its fields, and what is wrong with them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from yunque.settings_file import SettingsFile
from yunque.workspace import Workspace

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

    Without a user's template the question goes to the model as it is.
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
        if not (self.steps or self.tools or self.prompt.user):
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
    """What is wrong with the parts that have a language of their own: templates, tools, steps, memory."""
    for name, texts in (("system", definition.prompt.system), ("user", definition.prompt.user)):
        for language, template in texts.items():
            if problem := _template_problem(template):
                yield file.mistake(("prompt", name, language), problem)
    for number, group in enumerate(definition.knowledge.synonyms if definition.knowledge else []):
        if not any(group.values()):
            yield file.mistake(("knowledge", "synonyms", number), "the group is empty")
    for place, read in _parts(definition, file.path.parent, workspace):
        try:
            read(f"{file.path}:{file.line(place)}: {'.'.join(map(str, place))}")
        except UserError as error:
            yield error


def _parts(
    definition: AppDefinition, folder: Path, workspace: Workspace | None
) -> Iterator[tuple[tuple[str | int, ...], Callable[[str], object]]]:
    """The fields that are read by others, which are loaded where an app has them."""
    if definition.tools:
        from yunque.apps.agents.reading import read_tools

        for number, tool in enumerate(definition.tools):
            if "agent" in tool:
                yield ("tools", number), _no_agents
                continue
            search = _no_passages if definition.knowledge else None
            yield ("tools", number), partial(read_tools, [tool], folder=folder, search=search)
    if definition.steps:
        from yunque.apps.chained import kept_prompts
        from yunque.apps.chains.reading import read_chain

        chain = {"name": definition.name, "model": definition.model, "steps": definition.steps}
        yield ("steps",), partial(read_chain, chain, folder=folder, read_prompt=kept_prompts(workspace))
    if definition.memory != "none":
        from yunque.apps.memory import read_policy

        yield ("memory",), partial(read_policy, definition.memory)


def _no_passages(words: str, k: int) -> Sequence[Any]:
    """Stands for the search in the app's documents while its file is read."""
    del words, k
    return ()


def _no_agents(where: str) -> None:
    raise UserError(f"{where}: an app's tools are functions, APIs, databases and the search in its documents")


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
