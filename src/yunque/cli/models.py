"""`yunque models`: what can be asked, ranked on privacy, quality, cost and latency."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, note, table, warn

if TYPE_CHECKING:
    from yunque.evaluate.model_list import ListedModel, ModelList
    from yunque.workspace import Workspace

_SECONDS_TO_ASK = 5.0
_TOKENS_TO_MEASURE = 32
_MEASURED_WITH = "Write the numbers from one to thirty in words, separated by commas."


def models(
    name: list[str] = typer.Argument(
        None,
        help="Models to list beside those that are known, such as openai/gpt-4o-mini.",
        show_default=False,
    ),
    by: str = typer.Option("privacy", help="What comes first: privacy, quality, cost or latency."),
    task: str = typer.Option("", help="The evaluation that quality is compared on. Default: the commonest."),
    ask: bool = typer.Option(
        False, "--ask", help="Ask servers of your own, and providers that there is a key for, what they have."
    ),
    measure: bool = typer.Option(
        False,
        "--measure",
        help="Ask the models that are named (without names: those of the workspace) for a short text, and take the "
        "time. A remote one may cost money.",
    ),
    json: bool = JSON_OPTION,
) -> None:
    """List the models that can be asked: what happens to a text, how good, dear and quick they are.

    Nothing is asked over a network without --ask or --measure. Speeds are medians of the last answers.
    """
    from yunque.evaluate.model_list import list_models
    from yunque.workspace import Workspace

    workspace, names = Workspace.open(), list(name or ())
    if ask:
        names += _asked(workspace)
    listed = list_models(workspace, names, by, task)
    if measure:
        wanted = list(name or ()) or [each.name for each in listed.models if each.name.startswith("model/")]
        for each in wanted:
            _measure(workspace, each)
        listed = list_models(workspace, names, by, task)
    keys = [] if ask else _providers_with_key(workspace)
    emit(
        {
            "task": listed.task,
            "metric": listed.metric,
            "models": [{**each.as_dict(), "place": place} for place, each in enumerate(listed.models, 1)],
        },
        json,
        lambda console: _render(console, listed),
    )
    if keys:
        note(f"there is a key for {', '.join(keys)}: --ask lists what they have")


def _render(console: Console, listed: "ModelList") -> None:
    if not listed.models:
        console.print(
            "No model yet: `yunque quickstart` makes one, and openai/gpt-4o-mini names one elsewhere."
        )
        return
    figures = ("quality", "$/M in", "$/M out", "first token", "tokens/s")
    rows = [_row(listed, model) for model in listed.models]
    console.print(table("", ("model", "a text", *figures), rows, right=figures))
    if listed.task:
        console.print(f"Quality: {listed.metric} on {listed.task}.")
    if dates := {model.prices_of for model in listed.models if model.prices_of}:
        console.print(f"Prices: US dollars for a million tokens, by the list of {max(dates)}.")
    for provider, use in dict.fromkeys((model.provider, _use(model)) for model in listed.models):
        console.print(f"{provider}: {use}", markup=False)


def _row(listed: "ModelList", model: "ListedModel") -> list[object]:
    quality, speed = listed.quality(model), model.speed
    return [
        model.name,
        model.privacy,
        "" if quality is None else f"{quality:.3g}",
        _price(model.input),
        _price(model.output),
        f"{1000 * speed.first_token:.0f} ms" if speed and speed.first_token is not None else "",
        f"{speed.tokens_a_second:.1f}" if speed and speed.tokens_a_second else "",
    ]


def _price(price: float | None) -> str:
    if price is None:
        return "?"
    return f"{price:.2f}" if price else "0"


def _use(model: "ListedModel") -> str:
    source = f" ({model.data_source}, read {model.data_read})" if model.data_source else ""
    return model.data_use + source


def _providers_with_key(workspace: "Workspace") -> list[str]:
    from yunque.errors import UserError
    from yunque.llm.names import parse_remote
    from yunque.llm.provider_keys import NoKey, key_finder
    from yunque.llm.providers import PROVIDERS
    from yunque.workspace.provider_keys import ProviderKeys

    kept, found = ProviderKeys(workspace.root, workspace.keys), []
    for provider in PROVIDERS.values():
        try:
            remote = parse_remote(provider.example)
            if remote and provider.needs_key and key_finder(remote, kept)():
                found.append(provider.name)
        except (NoKey, UserError):
            continue
    return found


def _asked(workspace: "Workspace") -> list[str]:
    """The models that servers of one's own and providers with a key say that they have."""
    import time

    from yunque.errors import UserError
    from yunque.llm import ModelUnavailable
    from yunque.llm.open import open_remote
    from yunque.llm.providers import PROVIDERS
    from yunque.llm.under_way import UnderWay

    with_key, found = _providers_with_key(workspace), []
    for provider in PROVIDERS.values():
        if provider.needs_key and provider.name not in with_key:
            continue
        try:
            with UnderWay(time.monotonic() + _SECONDS_TO_ASK).current():
                told = open_remote(workspace, provider.example).models()
            found += [f"{provider.name}/{model}" for model in told]
        except (ModelUnavailable, UserError) as error:
            if provider.needs_key:
                warn(str(error))
            else:
                note(f"{provider.name} does not run, or says nothing")
    return found


def _measure(workspace: "Workspace", name: str) -> None:
    from yunque.errors import UserError
    from yunque.generate.config import GenerationConfig
    from yunque.llm import Message, ModelUnavailable
    from yunque.llm.router import RouterSettings
    from yunque.llm.routing import routed

    settings = RouterSettings(model=name, deadline=120.0)
    config = GenerationConfig(max_new_tokens=_TOKENS_TO_MEASURE)
    try:
        model = routed(workspace, settings)
        # The first answer of a process pays for what is opened and compiled once.
        for _ in range(2):
            list(model.stream_chat([Message("user", _MEASURED_WITH)], config))
        model.close()
    except (ModelUnavailable, UserError) as error:
        warn(f"not measured: {error}")
