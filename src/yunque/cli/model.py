"""`yunque model`: models that come from elsewhere, what is in them, and the way out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yunque.cli.model_memory import memory
from yunque.cli.show import JSON_OPTION, bars, bytes_of, emit, note, size, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.model.library import ExportFormat
    from yunque.model.opening import Checkpoint
    from yunque.workspace import Artifact

app = typer.Typer(no_args_is_help=True, help="Bring models in, look at them, and take them out.")
app.command("memory")(memory)

_REF_OR_PATH = (
    "A model of the workspace (NAME, model/NAME@VERSION), a folder, a .gguf or a llama2.c .bin file."
)


@app.command("import")
def import_(
    source: str = typer.Argument(
        help="A folder, a .gguf file, a llama2.c .bin file, or hf:ORG/NAME[@REVISION]."
    ),
    name: str | None = typer.Option(None, help="The model's name here. (default: that of the source)"),
    dtype: str | None = typer.Option(
        None, help="Keep numbers as float32, float16 or bfloat16. (default: as they came)"
    ),
    tokenizer: Path | None = typer.Option(
        None, help="A tokenizer's file or folder, where the model has none with it (llama2.c)."
    ),
    chat_template: str | None = typer.Option(
        None, help="How it writes conversations: a Jinja file, or plain. (default: as its files say)"
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a model and keep it in the workspace, bit for bit. The source is never changed."""
    from yunque.model.library import import_model
    from yunque.workspace import Workspace

    template = _read_template(chat_template) if chat_template else None
    made = import_model(Workspace.open(), source, name, dtype, tokenizer, bars, template)
    if "tokenizer.json" not in made.files:
        note("it came without a tokenizer: text cannot go in or out (import it again with --tokenizer PATH)")

    def render(console: Console) -> None:
        figures = made.figures
        console.print(
            f"{made.ref}: {made.config['family']}, {figures['parameters']:,} parameters, "
            f"{size(figures['bytes'])} of {figures['dtype']}"
        )

    emit(made.as_dict(), as_json, render)


def _read_template(name: str) -> str:
    from yunque.tokenizer.chat import PLAIN_TEMPLATE

    if name == "plain":
        return PLAIN_TEMPLATE
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template: {name}: cannot be read ({error})") from None


@app.command("new")
def new(
    overrides: list[str] | None = typer.Argument(
        None, metavar="[FIELD=VALUE]...", help="The shape, such as model.layers=4 model.hidden_size=320."
    ),
    family: str | None = typer.Option(
        None,
        help="llama, mistral, qwen2, qwen3, gpt2, falcon, rnn, t5, transformer or rnn-seq2seq. (default: llama)",
    ),
    tokenizer: str | None = typer.Option(None, help="The tokenizer. (default: the only one there is)"),
    name: str | None = typer.Option(None, help="The name of the model. (default: new)"),
    seed: int | None = typer.Option(None, help="The same seed draws the same weights. (default: 0)"),
    config: Path | None = typer.Option(None, help="A YAML file of settings."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Make a model that has learned nothing yet, to be trained on rows with `yunque tune`."""
    from yunque.configuration import resolve
    from yunque.train.shapes import NewModelSettings, make_model
    from yunque.workspace import Workspace

    settings = resolve(
        NewModelSettings,
        config,
        [*([f"model.family={family}"] if family else []), *(overrides or ())],
        tokenizer=tokenizer,
        name=name,
        seed=seed,
    )
    made = make_model(Workspace.open(), settings)

    def render(console: Console) -> None:
        console.print(f"{made.ref}: {settings.model.family}, {made.figures['parameters']:,} parameters")

    emit(made.as_dict(), as_json, render)


@app.command("export")
def export(
    model: str = typer.Argument(help="The model: NAME or model/NAME@VERSION."),
    folder: Path = typer.Argument(help="The folder to make."),
    format: str = typer.Option("hf", help="hf (a folder for transformers) or gguf (int8, for llama.cpp)."),
    max_shard_size: str | None = typer.Option(
        None, help="The most for one file of weights, such as 5GB or 200MB."
    ),
    force: bool = typer.Option(False, "--force", help="Replace the folder, whatever is in it."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write a model as a Hugging Face folder, or as GGUF."""
    from yunque.model.library import export_model
    from yunque.workspace import Workspace

    if format not in ("hf", "gguf"):
        raise UserError(f"--format: {format!r} is not hf or gguf")
    most = None if max_shard_size is None else bytes_of(max_shard_size, "--max-shard-size")
    wanted: ExportFormat = "gguf" if format == "gguf" else "hf"
    made = export_model(Workspace.open(), model, folder, wanted, most, force, bars)
    sizes = {str(path): path.stat().st_size for path in made}

    def render(console: Console) -> None:
        rows = [(path, size(count)) for path, count in sizes.items()]
        console.print(table("", ("file", "size"), rows, right=("size",)))

    emit({"folder": str(folder), "format": format, "files": sizes}, as_json, render)


@app.command("show")
def show(model: str = typer.Argument(help=_REF_OR_PATH), as_json: bool = JSON_OPTION) -> None:
    """Show a model's layers: shapes, parameters, bytes. Of the weights, only copies of a tied table are read."""
    from yunque.model.opening import open_checkpoint, open_files
    from yunque.model.summary import model_parts
    from yunque.workspace import Workspace

    artifact: Artifact | None = None
    path = Path(model)
    # A name of the workspace is a name first; ./NAME is always a path.
    if model and path.exists() and (_workspace_has_no(model) or "/" in model or "\\" in model):
        checkpoint = open_checkpoint(path)
    else:
        workspace = Workspace.open()
        artifact = workspace.get(model, "model")
        checkpoint = open_files(workspace.files(artifact))
    facts = _facts(checkpoint, artifact)
    parts = model_parts(checkpoint.source.entries)

    def render(console: Console) -> None:
        console.print(_drawn(model, facts, parts))
        for name, value in facts.items():
            if value is not None and name not in ("parameters", "bytes"):
                console.print(f"[dim]{name.replace('_', ' ')}:[/] {escape(str(value))}")

    listed = [
        {
            "role": part.role,
            "name": part.name,
            "count": part.count,
            "parameters": part.parameters,
            "bytes": part.bytes,
            "tensors": [
                {
                    "name": line.name,
                    "shape": list(line.shape),
                    "dtype": line.kind,
                    "parameters": line.parameters,
                }
                for line in part.tensors
            ],
        }
        for part in parts
    ]
    emit({"model": artifact.ref if artifact else str(path), **facts, "parts": listed}, as_json, render)


def _workspace_has_no(name: str) -> bool:
    """Whether nothing in the workspace is called so (a path need be no name at all)."""
    from yunque.workspace import Workspace

    try:
        return Workspace.open().find(name, "model") is None
    except UserError:
        return True


def _facts(checkpoint: "Checkpoint", artifact: "Artifact | None") -> dict[str, Any]:
    """What there is to say of a model besides its tensors."""
    from yunque.model.checkpoint import plan_loading

    entries = checkpoint.source.entries
    kinds = {
        entry.packed[0] if entry.packed else str(entry.dtype).removeprefix("torch.")
        for entry in entries.values()
    }
    opens, context, tied = "yes", None, False
    try:
        config = checkpoint.configuration
        context, tied = config.context, config.tie_word_embeddings
        plan_loading(config, checkpoint.source)
    except UserError as error:
        opens = f"no: {error}"
    tokenizer = checkpoint.tokenizer
    return {
        "family": checkpoint.fields.get("model_type"),
        "format": artifact.config.get("format", checkpoint.format) if artifact else checkpoint.format,
        "parameters": sum(entry.count for entry in entries.values()),
        "bytes": sum(entry.packed[1] if entry.packed else entry.bytes for entry in entries.values()),
        "dtype": ", ".join(sorted(kinds)),
        "context": context,
        "head": "tied to the embedding" if tied else None,
        "tokenizer": f"{tokenizer.vocab_size:,} tokens" if tokenizer else "none",
        "chat_template": "yes" if tokenizer and tokenizer.chat_template else None,
        "source": artifact.config.get("source") if artifact else None,
        "revision": artifact.config.get("revision") if artifact else None,
        "made_from": ", ".join(artifact.parents) or None if artifact else None,
        "opens": opens,
    }


def _drawn(model: str, facts: dict[str, Any], parts: list[Any]) -> Table:
    columns = ("part", "tensor", "shape", "type", "parameters", "bytes")
    drawn = table(model, columns, (), right=("shape", "parameters", "bytes"))
    for part in parts:
        times = f" x {part.count}" if part.count > 1 else ""
        title = f"[bold]{part.role or 'other'}{times}[/]"
        alone = part.count == 1 and len(part.tensors) == 1
        if not alone:
            numbers = f"[bold]{part.parameters:,}[/]", f"[bold]{size(part.bytes)}[/]"
            drawn.add_row(title, f"[bold]{escape(part.name)}[/]", "", "", *numbers)
        for line in part.tensors:
            shape = " x ".join(map(str, line.shape)) or "1"
            cells = escape(line.name), shape, line.kind, f"{line.parameters:,}", size(line.bytes)
            drawn.add_row(title if alone else "", *cells if alone else ("  " + cells[0], *cells[1:]))
        drawn.add_section()
    total = f"[bold]{facts['parameters']:,}[/]", f"[bold]{size(facts['bytes'])}[/]"
    drawn.add_row("[bold]total[/]", "", "", "", *total)
    return drawn


@app.command("list")
def list_models(as_json: bool = JSON_OPTION) -> None:
    """List the models of the workspace."""
    from yunque.workspace import Workspace

    listed = [_listed(artifact, Workspace.open()) for artifact in Workspace.open().list("model")]

    def render(console: Console) -> None:
        if not listed:
            console.print("No models yet: `yunque model import PATH`, `yunque train` or `yunque quickstart`.")
            return
        columns = ("model", "family", "parameters", "size", "context", "type", "source")
        rows = [
            (
                one["ref"],
                one["family"] or "?",
                f"{one['parameters']:,}" if one["parameters"] is not None else "?",
                size(one["bytes"]),
                f"{one['context']:,}" if one["context"] else "",
                one["dtype"] or "?",
                one["source"] or "",
            )
            for one in listed
        ]
        console.print(table("", columns, rows, right=("parameters", "size", "context")))

    emit(listed, as_json, render)


def _listed(artifact: "Artifact", workspace: Any) -> dict[str, Any]:
    """What is kept about a model, without opening it where that can be avoided."""
    fields: dict[str, Any] = {}
    if "config.json" in artifact.files:
        fields = json.loads(workspace.file(artifact, "config.json").read_bytes())
    contexts = (
        fields.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_length")
    )
    weights = sum(
        workspace.file(artifact, name).stat().st_size
        for name in artifact.files
        if name.endswith((".safetensors", ".bin"))
    )
    return {
        "ref": artifact.ref,
        "family": fields.get("model_type"),
        "parameters": artifact.figures.get("parameters"),
        "bytes": artifact.figures.get("bytes", weights),
        "context": artifact.figures.get("context", next((n for n in contexts if n), None)),
        "dtype": artifact.figures.get("dtype") or fields.get("dtype") or fields.get("torch_dtype"),
        "source": artifact.config.get("source") or ", ".join(artifact.parents) or None,
    }
