"""The `yunque` command. Nothing here may import torch, or any floor, before a command needs it."""

import os
import sys
from typing import Any

import typer
import typer.core

from yunque import __version__
from yunque.cli import (
    agent,
    align,
    ask,
    audit,
    bench,
    budget,
    cache,
    chain,
    compare,
    data,
    evaluate,
    forgetting,
    generate,
    index,
    key,
    lab,
    lineage,
    memory,
    model,
    models,
    prompt,
    provider_key,
    quantize,
    quickstart,
    serve,
    task,
    tokenizer,
    train,
    tune,
)
from yunque.cli import app as app_command
from yunque.cli.show import complain
from yunque.errors import UserError
from yunque.processes import rank, world_size

PANELS = START, PREPARE, MODELS, APPLY, ANSWER = (
    "Start here",
    "Prepare",
    "Models",
    "Apply and serve",
    "Answer for it",
)


class _InLifeCycleOrder(typer.core.TyperGroup):
    """Lists commands and groups panel by panel: typer would put every group after every command."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx

        def panel(name: str) -> int:
            return PANELS.index(getattr(self.commands[name], "rich_help_panel", START))

        return sorted(self.commands, key=panel)


app = typer.Typer(
    name="yunque",
    cls=_InLifeCycleOrder,
    help="One platform for the whole life of a language-model application.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"yunque {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", callback=_show_version, is_eager=True
    ),
) -> None:
    """One platform for the whole life of a language-model application.

    Everything is kept in the workspace: the folder .yunque, or the one that YUNQUE_WORKSPACE names.
    """
    del version


app.command("quickstart", rich_help_panel=START)(quickstart.quickstart)
app.add_typer(data.app, name="data", rich_help_panel=PREPARE)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=PREPARE)
app.add_typer(model.app, name="model", rich_help_panel=MODELS)
app.command("train", rich_help_panel=MODELS)(train.train)
app.command("tune", rich_help_panel=MODELS)(tune.tune)
app.add_typer(align.app, name="align", rich_help_panel=MODELS)
app.command("quantize", rich_help_panel=MODELS)(quantize.quantize)
app.command("eval", rich_help_panel=MODELS)(evaluate.evaluate)
app.command("forgetting", rich_help_panel=MODELS)(forgetting.forgetting)
app.command("generate", rich_help_panel=MODELS)(generate.generate)
app.command("bench", rich_help_panel=MODELS)(bench.bench)
app.add_typer(lab.app, name="lab", rich_help_panel=MODELS)
app.command("models", rich_help_panel=MODELS)(models.models)
app.command("compare", rich_help_panel=MODELS)(compare.compare)
app.add_typer(task.app, name="task", rich_help_panel=APPLY)
app.add_typer(prompt.app, name="prompt", rich_help_panel=APPLY)
app.add_typer(index.app, name="index", rich_help_panel=APPLY)
app.command("ask", rich_help_panel=APPLY)(ask.ask)
app.add_typer(app_command.app, name="app", rich_help_panel=APPLY)
app.add_typer(chain.app, name="chain", rich_help_panel=APPLY)
app.add_typer(agent.app, name="agent", rich_help_panel=APPLY)
app.add_typer(memory.app, name="memory", rich_help_panel=APPLY)
app.add_typer(budget.app, name="budget", rich_help_panel=APPLY)
app.add_typer(cache.app, name="cache", rich_help_panel=APPLY)
app.command("serve", rich_help_panel=APPLY)(serve.serve)
provider_key.register(key.app)
app.add_typer(key.app, name="key", rich_help_panel=APPLY)
app.command("list", rich_help_panel=ANSWER)(lineage.list_artifacts)
app.command("lineage", rich_help_panel=ANSWER)(lineage.lineage)
app.command("log", rich_help_panel=ANSWER)(lineage.log)
app.add_typer(audit.app, name="audit", rich_help_panel=ANSWER)


def _first_to_tell() -> bool:
    """Whether no other process of the same run told of an error."""
    if world_size() == 1:
        return True
    from yunque.train.distributed import first_to_tell

    return first_to_tell()


def run(arguments: list[str] | None = None) -> None:
    """Entry point: mistakes of the user end in one sentence and exit code 2."""
    # Read when torch is loaded: its threads sleep while they wait for one another. Where another program uses a
    # core too, waiting in a loop made a training step three times slower (docs/notebook.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if world_size() > 1:
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # what torch finds unusual is no news to the user
    try:
        if any("\ud800" <= letter <= "\udfff" for text in arguments or sys.argv[1:] for letter in text):
            raise UserError("an argument is not UTF-8 text: type it again, or set the terminal to UTF-8")
        app(args=arguments)
    except UserError as error:
        if _first_to_tell():
            complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if rank() == 0:
            complain("stopped")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`yunque log | head`): that is not an error.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    run()
