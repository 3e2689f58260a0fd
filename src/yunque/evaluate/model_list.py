"""Which models can be reached, and how they rank on privacy, quality, cost and latency. No network is asked."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from yunque.errors import UserError
from yunque.llm.breaker import HERE
from yunque.llm.router import looks_local
from yunque.llm.routing import artifact_of, known_price
from yunque.workspace import Artifact, Workspace
from yunque.workspace.measurements import Measurements, Speed

RANKINGS = ("privacy", "quality", "cost", "latency")
PRIVACY = (
    "stays on this machine",
    "goes to a server of yours",
    "is kept for a while",
    "may be read or trained on",
)
_UNKNOWN_RANK = len(PRIVACY)
_TOKENS_OF_AN_ANSWER = 200
# Of what is paid for, prompts are the larger part: three tokens are read for one that is written.
_READ_FOR_ONE_WRITTEN = 3


@dataclass(frozen=True)
class Quality:
    """What an evaluation of the workspace says of a model: `value` of `metric` on `task`."""

    task: str
    metric: str
    value: float
    evaluation: str


@dataclass(frozen=True)
class ListedModel:
    """A model and what is known of it; None is not known. Prices are US dollars for a million tokens.

    `data_rank`: see `yunque.llm.providers.Provider`; one more than the last where the provider is not known.
    """

    name: str
    provider: str
    data_rank: int
    data_use: str
    data_source: str = ""
    data_read: str = ""
    input: float | None = None
    output: float | None = None
    prices_of: str = ""
    speed: Speed | None = None
    qualities: tuple[Quality, ...] = ()
    ranks: dict[str, int] = field(default_factory=dict)

    @property
    def cost(self) -> float | None:
        """Dollars for a million tokens, three read for one that is written."""
        if self.input is None or self.output is None:
            return None
        return (_READ_FOR_ONE_WRITTEN * self.input + self.output) / (_READ_FOR_ONE_WRITTEN + 1)

    @property
    def latency(self) -> float | None:
        """Seconds that an answer of 200 tokens takes, by what was measured."""
        speed = self.speed
        if speed is None or speed.first_token is None or not speed.tokens_a_second:
            return None
        return speed.first_token + _TOKENS_OF_AN_ANSWER / speed.tokens_a_second

    @property
    def privacy(self) -> str:
        """What happens to a text, in a few words."""
        return PRIVACY[self.data_rank] if self.data_rank < _UNKNOWN_RANK else "not known"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.name,
            "provider": self.provider,
            "privacy": {
                "rank": self.data_rank,
                "what": self.privacy,
                "data_use": self.data_use,
                "source": self.data_source,
                "read": self.data_read,
            },
            "usd_per_million": {"input": self.input, "output": self.output, "prices_of": self.prices_of},
            "speed": self.speed.as_dict() if self.speed else None,
            "quality": [vars(quality) for quality in self.qualities],
            "ranks": self.ranks,
        }


@dataclass(frozen=True)
class ModelList:
    """Models in order, and by which evaluation their quality was ranked."""

    models: tuple[ListedModel, ...]
    task: str = ""
    metric: str = ""

    def quality(self, model: ListedModel) -> float | None:
        """The figure that a model is ranked by."""
        for each in model.qualities:
            if (each.task, each.metric) == (self.task, self.metric):
                return each.value
        return None


def list_models(
    workspace: Workspace, names: Iterable[str] = (), by: str = "privacy", task: str = ""
) -> ModelList:
    """The models of the workspace, those that were measured, evaluated or named in an app, and `names`, best first.

    Quality is compared on `task`, or on the evaluation that most of them have: figures of different tests say nothing
    of one another. Raises UserError for a ranking that there is not.
    """
    if by not in RANKINGS:
        raise UserError(f"models are not ranked by {by!r}: use {', '.join(RANKINGS)}")
    qualities = _qualities(workspace)
    measurements = Measurements.of(workspace.root)
    known = [*_local_names(workspace), *names, *measurements.models(), *qualities, *_names_in_apps(workspace)]
    models = [
        _listed(name, measurements.speed(name), tuple(qualities.get(name, ())))
        for name in dict.fromkeys(_full_name(workspace, name) for name in known)
        if name
    ]
    shared = _shared_test(models, task)
    if task and not shared[0]:
        raise UserError(f"no evaluation of {task!r} in the workspace: make one with `yunque compare`")
    listed = ModelList(tuple(models), *shared)
    return ModelList(tuple(_ranked(listed, by)), *shared)


def _local_names(workspace: Workspace) -> list[str]:
    return [artifact.ref for kind in ("model", "adapter") for artifact in workspace.list(kind)]


def _full_name(workspace: Workspace, name: str) -> str:
    """The name with its version; "" for one of the workspace that is not there any more."""
    if not looks_local(name) or name.startswith("scripted:"):
        return name
    artifact = artifact_of(workspace, name)
    return artifact.ref if artifact else ""


def _names_in_apps(workspace: Workspace) -> list[str]:
    return [name for app in workspace.list("app") if isinstance(name := app.config.get("model"), str)]


def _qualities(workspace: Workspace) -> dict[str, list[Quality]]:
    """What the evaluations say of each model, the newest of each test."""
    found: dict[str, dict[tuple[str, str], Quality]] = {}
    for artifact in workspace.list("evaluation", every_version=True):
        for model, quality in _told_by(artifact):
            found.setdefault(model, {})[quality.task, quality.metric] = quality
    return {model: list(each.values()) for model, each in found.items()}


def _told_by(artifact: Artifact) -> list[tuple[str, Quality]]:
    if isinstance(scores := artifact.figures.get("scores"), dict):
        task, metric = str(artifact.config.get("task")), str(artifact.config.get("metric"))
        return [(model, Quality(task, metric, float(value), artifact.ref)) for model, value in scores.items()]
    model, accuracy = artifact.config.get("model"), artifact.figures.get("accuracy")
    if not isinstance(model, str) or not isinstance(accuracy, int | float):
        return []
    data = next((parent for parent in artifact.parents if parent.startswith("dataset/")), "")
    return [(model, Quality(data, "accuracy", float(accuracy), artifact.ref))]


def _shared_test(models: Sequence[ListedModel], task: str) -> tuple[str, str]:
    tests = Counter(
        (each.task, each.metric)
        for model in models
        for each in model.qualities
        if not task or each.task == task
    )
    return max(tests, key=lambda test: tests[test], default=("", ""))


def _listed(name: str, speed: Speed | None, qualities: tuple[Quality, ...]) -> ListedModel:
    if looks_local(name):
        here = "Runs in this process; nothing leaves it."
        return ListedModel(name, HERE, 0, here, input=0.0, output=0.0, speed=speed, qualities=qualities)
    from yunque.llm.names import parse_remote
    from yunque.llm.providers import data_rank_of, provider_of

    remote, price = parse_remote(name), known_price(name)
    use = "A server that you named; what it keeps and whom it asks is set there."
    rank = 1 if remote is not None and remote.on_this_machine else _UNKNOWN_RANK
    model = ListedModel(name, provider_of(name), rank, use, speed=speed, qualities=qualities)
    if price:
        model = replace(model, input=price.input, output=price.output, prices_of=price.date)
    if remote is None or remote.provider is None:
        return model
    provider = remote.provider
    return replace(
        model,
        data_rank=data_rank_of(provider, remote.base_url),
        data_use=provider.data_use,
        data_source=provider.data_source,
        data_read=provider.data_read,
    )


def _ranked(listed: ModelList, by: str) -> list[ListedModel]:
    """The models by one ranking; equal ones by the others, in their order. What is not known comes last."""

    def lowest_first(figure: Callable[[ListedModel], float | None]) -> Callable[[ListedModel], float]:
        return lambda model: float("inf") if (value := figure(model)) is None else value

    figures: dict[str, Callable[[ListedModel], float]] = {
        "privacy": lambda model: float(model.data_rank),
        "quality": lowest_first(lambda model: None if (value := listed.quality(model)) is None else -value),
        "cost": lowest_first(lambda model: model.cost),
        "latency": lowest_first(lambda model: model.latency),
    }
    places = {name: sorted({figure(model) for model in listed.models}) for name, figure in figures.items()}
    for model in listed.models:
        for name, figure in figures.items():
            if (value := figure(model)) != float("inf"):
                model.ranks[name] = 1 + places[name].index(value)
    order = [by, *(name for name in RANKINGS if name != by)]
    return sorted(listed.models, key=lambda model: [*(figures[name](model) for name in order), model.name])
