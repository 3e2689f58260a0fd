"""`yunque budget`: how much money and how many tokens keys, apps and everything together may use."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.workspace.budgets import Budget

app = typer.Typer(help="Set and show budgets in US dollars and tokens.", no_args_is_help=True)

_WHO = typer.Argument(help="Who pays: key/ID, app/NAME, or all.")
_PERIOD = typer.Option("day", help="day or month (UTC), or total.")


@app.command("set")
def set_budget(
    who: str = _WHO,
    usd: float | None = typer.Option(None, help="US dollars.", show_default=False),
    tokens: int | None = typer.Option(None, help="Tokens, in and out.", show_default=False),
    period: str = _PERIOD,
    json: bool = JSON_OPTION,
) -> None:
    """Set a budget: a call that could pass it is refused before it is made."""
    from yunque.workspace import Workspace
    from yunque.workspace.budgets import Budgets, checked_period

    if usd is None and tokens is None:
        raise UserError("say how much: --usd, --tokens or both (`yunque budget remove` takes a budget away)")
    workspace = Workspace.open()
    budgets = Budgets.of(workspace.root)
    wanted = checked_period(period)
    budgets.set(who, usd, tokens, wanted)
    workspace.record("budget.set", f"budget/{who}", usd=usd, tokens=tokens, period=period)
    made = budgets.used(who, wanted)
    emit(made.as_dict(), json, lambda console: _render(console, [made]))


@app.command()
def remove(who: str = _WHO, period: str = _PERIOD, json: bool = JSON_OPTION) -> None:
    """Take a budget away; what was used stays known."""
    from yunque.workspace import Workspace
    from yunque.workspace.budgets import Budgets, checked_period

    workspace = Workspace.open()
    budgets = Budgets.of(workspace.root)
    found = [each.source for each in budgets.list() if (each.who, each.period) == (who, period)]
    if found == ["file"]:
        raise UserError(f"the budget of {who} is set in the app's own file: change `budget` there")
    if not found:
        raise UserError(f"{who!r} has no budget for {period!r}: see `yunque budget list`")
    budgets.set(who, period=checked_period(period))
    workspace.record("budget.remove", f"budget/{who}", period=period)
    emit(
        {"who": who, "period": period, "removed": True}, json, lambda console: console.print(f"removed {who}")
    )


@app.command("list")
def list_budgets(json: bool = JSON_OPTION) -> None:
    """Every budget, and what is used of it."""
    from yunque.workspace import Workspace
    from yunque.workspace.budgets import Budgets

    found = Budgets.of(Workspace.open().root).list()
    emit([each.as_dict() for each in found], json, lambda console: _render(console, found))


@app.command()
def show(who: str = _WHO, json: bool = JSON_OPTION) -> None:
    """What a key, an app or everything used today, this month and in all."""
    from yunque.workspace import Workspace
    from yunque.workspace.budgets import Budgets

    budgets = Budgets.of(Workspace.open().root)
    found = [budgets.used(who, "day"), budgets.used(who, "month"), budgets.used(who, "total")]
    emit([each.as_dict() for each in found], json, lambda console: _render(console, found))


def _render(console: Console, budgets: "list[Budget]") -> None:
    if not budgets:
        console.print("No budget is set: `yunque budget set all --usd 5` limits what a day may cost.")
        return
    rows = [
        (
            each.who + (" (by its file)" if each.source == "file" else ""),
            each.period,
            f"{each.used_usd:.4f}" + (f" of {each.usd:.2f}" if each.usd is not None else ""),
            f"{each.used_tokens:,}" + (f" of {each.tokens:,}" if each.tokens is not None else ""),
            f"{each.held_usd:.4f}, {each.held_tokens:,}" if each.held_tokens else "",
            each.calls,
        )
        for each in budgets
    ]
    figures = ("US dollars", "tokens", "held by calls under way", "calls")
    console.print(table("", ("who", "period (UTC)", *figures), rows, right=figures))
