"""A model as an application asks it: routed, kept to a policy, charged to budgets, measured, cached if asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yunque.errors import UserError
from yunque.llm.breaker import SHARED, Breakers
from yunque.llm.budgets import BudgetedModel, ListPrice, PriceOf
from yunque.llm.cache import AnswerCache, CachedModel, CacheSettings
from yunque.llm.face import EmbeddingModel, LanguageModel, Usage
from yunque.llm.policy import PolicedModel, WirePolicy
from yunque.llm.router import Measured, Router, RouterSettings, looks_local
from yunque.workspace import Artifact, Workspace
from yunque.workspace.budgets import Budgets
from yunque.workspace.measurements import Measurements


@dataclass(frozen=True)
class Caller:
    """Who asks: `charged` are the budgets that pay (`key/ID`, `app/NAME`), `scope` whose cached answers they are (the
    API key, or a tenant), `subject` the person that they ask for."""

    charged: tuple[str, ...] = ()
    scope: str = ""
    subject: str = ""


def routed(
    workspace: Workspace,
    settings: RouterSettings,
    policy: WirePolicy | None = None,
    caller: Caller | None = None,
    cache: CacheSettings | None = None,
    open_one: Callable[[str], LanguageModel] | None = None,
    embedder: EmbeddingModel | None = None,
    price_of: PriceOf | None = None,
    breakers: Breakers = SHARED,
) -> Router | CachedModel:
    """The models of `settings` as one. Each is opened when it is first needed, by `open_one` if that is given (a
    server lends models that it holds already).

    From the outside in: cache, router, and for each model budget, policy. So what a cache gives is neither charged
    nor sent; a retry is held against the budget again; and nothing but the policy's text reaches a remote model.
    Raises UserError for what is no name of a model.
    """
    policy, caller = policy or WirePolicy(), caller or Caller()
    budgets = Budgets.of(workspace.root)
    prices, opened = price_of or known_price, open_one or (lambda name: open_bare(workspace, name))

    def layered(name: str) -> LanguageModel:
        return BudgetedModel(PolicedModel(opened(name), policy), budgets, caller.charged, prices)

    measurements = Measurements.of(workspace.root)

    def watch(seen: Measured) -> None:
        usage = seen.usage
        measurements.add(
            seen.model, usage.prompt_tokens, usage.completion_tokens, seen.first_token, seen.seconds
        )

    router = Router(settings, layered, breakers, watch)
    if cache is None:
        return router
    answers = open_cache(workspace, cache, embedder)
    return CachedModel(
        router,
        answers,
        caller.scope,
        caller.subject,
        policy.model_dump_json(),
        # A name without a version means another model as soon as there is a newer one.
        " ".join(_versions(workspace, settings.names)),
    )


def open_cache(
    workspace: Workspace, settings: CacheSettings | None = None, embedder: EmbeddingModel | None = None
) -> AnswerCache:
    """The cache of a workspace; `forget(subject)` on it erases a person."""
    return AnswerCache(workspace.root / "answers.db", workspace.keys.secret("answers"), settings, embedder)


def open_bare(workspace: Workspace, name: str) -> LanguageModel:
    """The model called `name`; one elsewhere without retries of its own."""
    from yunque.llm.open import open_model, open_remote

    return open_model(workspace, name) if looks_local(name) else open_remote(workspace, name)


@dataclass(frozen=True)
class _Free:
    """The price of a model on a server of your own."""

    input: float = 0.0
    output: float = 0.0
    date: str = ""


def known_price(name: str) -> ListPrice | None:
    """The list price of a remote model; None where none is known."""
    from yunque.llm.names import parse_remote
    from yunque.llm.prices import cost_of, list_price

    if price := list_price(name):
        return price
    remote = parse_remote(name)
    cost = cost_of(remote, Usage(1000, 1000)) if remote else None
    return _Free() if cost is not None and cost.usd == 0 else None


def artifact_of(workspace: Workspace, name: str) -> Artifact | None:
    """The model of the workspace that a name means now; None for one elsewhere, or where there is none."""
    if not looks_local(name) or name.startswith("scripted:"):
        return None
    try:
        return workspace.find(name, None if "/" in name else "model")
    except UserError:
        return None


def _versions(workspace: Workspace, names: Sequence[str]) -> list[str]:
    found = [(name, artifact_of(workspace, name)) for name in names]
    return [artifact.ref if artifact else name for name, artifact in found]
