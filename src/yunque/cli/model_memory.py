"""`yunque model memory`: what a model takes, to hold and to train, before any of it is taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from yunque.cli.show import JSON_OPTION, bytes_of, emit, size, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.model.configuration import ModelConfig
    from yunque.model.memory import Change, HoldingMemory, Method, Number, TrainingMemory

Known = TypeVar("Known", bound=str)

_NUMBERS: "tuple[Number, ...]" = ("float32", "bfloat16", "int8", "int4")
_METHODS: "tuple[Method, ...]" = ("full", "lora", "qlora")
_PRODUCTS: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16", "float16")
# Positions of a row, where neither the user nor the model says fewer.
_LENGTH = 1024
_RULE = "24 bytes a parameter: 4 weights, 4 gradients, 8 Adam, 8 activations and passing numbers"


def memory(
    model: str = typer.Argument(
        help="A model of the workspace, a folder, or a shape: a config.json or a YAML file with its fields."
    ),
    train: str | None = typer.Option(None, help="What to train: full, lora or qlora."),
    batch: int = typer.Option(8, min=1, help="Rows of a batch."),
    seq: int | None = typer.Option(
        None, min=1, help=f"Positions of a row. (default: the model's context, at most {_LENGTH:,})"
    ),
    dtype: str = typer.Option("float32", help="Products in training: float32, bfloat16 or float16."),
    optimizer: str = typer.Option("adamw", help="adamw, momentum, adafactor or sgd."),
    rank: int = typer.Option(8, min=1, help="Rank of LoRA's matrices."),
    available: str | None = typer.Option(None, help="Memory there is, as 8GB. (default: this machine's)"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Tell what a model takes to hold and to train, whether it fits, and what to change."""
    from yunque.machine import machine_memory

    products = _one_of("--dtype", dtype, _PRODUCTS)
    there_is = machine_memory() if available is None else bytes_of(available, "--available")
    method = None if train is None else _one_of("--train", train, _METHODS)
    from yunque.model.memory import OPTIMIZERS, Training, changes_that_help, plan_holding, plan_training

    kind = _one_of("--optimizer", optimizer, OPTIMIZERS)
    config = _shape(model)
    length = _length(config, seq)
    held = [plan_holding(config, number) for number in _NUMBERS]
    step: TrainingMemory | None = None
    changes: list[Change] = []
    if method is not None:
        training = Training(batch, length, method, products, kind, rank)
        step = plan_training(config, training)
        if there_is is not None and step.peak_bytes > there_is:
            changes = changes_that_help(config, training, there_is)
    value = {
        "model": model,
        "family": config.model_type,
        "layers": config.num_layers,
        "parameters": held[0].parameters,
        "batch": batch,
        "seq": length,
        "available_bytes": there_is,
        "hold": [_held(one, batch, length, there_is) for one in held],
        "train": None if step is None else {**step.as_dict(), "fits": _fits(step.peak_bytes, there_is)},
        "changes": [
            {"change": one.what, "fits": _fits(one.memory.peak_bytes, there_is), **one.memory.as_dict()}
            for one in changes
        ],
    }

    def render(console: Console) -> None:
        console.print(
            f"{model}: {config.model_type}, {held[0].parameters:,} parameters, {config.num_layers} layers",
            markup=False,
        )
        console.print(_holding_table(held, batch, length, there_is))
        if step is not None:
            console.print(_training_table(step))
            _tell_verdict(console, step, there_is)
        if changes:
            console.print(_change_table(changes, there_is))
        console.print(
            "Tensors only: what Python, torch and the system take comes on top (docs/memory.md).", style="dim"
        )

    emit(value, as_json, render)


def _one_of(option: str, value: str, known: Sequence[Known]) -> Known:
    for one in known:
        if one == value:
            return one
    raise UserError(f"{option}: {value!r} is not one of {', '.join(known)}")


def _shape(model: str) -> "ModelConfig":
    """The configuration of a model of the workspace, in a folder, or in a file. A name is a name first."""
    from yunque.configuration import read_yaml
    from yunque.model.checkpoint import parse_configuration, read_configuration
    from yunque.model.formats.files import read_json
    from yunque.workspace import Workspace

    path = Path(model)
    artifact = None if "/" in model and path.exists() else _in_workspace(model)
    if artifact is not None:
        workspace = Workspace.open()
        return read_configuration(workspace.files(artifact))
    if path.is_dir():
        return read_configuration(path)
    if path.suffix in (".yaml", ".yml"):
        return parse_configuration(read_yaml(path), model)
    if path.suffix == ".json":
        return parse_configuration(read_json(path), model)
    if path.is_file():
        from yunque.model.opening import open_checkpoint

        return parse_configuration(open_checkpoint(path).fields, model)
    Workspace.open().get(model, "model")
    raise AssertionError("get raises for a name that is not there")


def _in_workspace(name: str) -> Any:
    from yunque.workspace import Workspace

    try:
        return Workspace.open().find(name, "model")
    except UserError:  # a path need be no name at all
        return None


def _length(config: "ModelConfig", seq: int | None) -> int:
    if seq is None:
        return min(config.context or _LENGTH, _LENGTH)
    if config.context is not None and seq > config.context:
        raise UserError(f"--seq: the model reads {config.context:,} positions at most, not {seq:,}")
    return seq


def _fits(count: int, available: int | None) -> bool | None:
    return None if available is None else count <= available


def _word(count: int, available: int | None) -> str:
    return {None: "", True: "yes", False: "no"}[_fits(count, available)]


def _held(one: "HoldingMemory", batch: int, length: int, available: int | None) -> dict[str, Any]:
    total = one.total(batch, length)
    cache = one.cache
    return {
        "number": one.number,
        "weight_bytes": one.weight_bytes,
        "cache_bytes_per_token": cache.token_bytes if cache else 0,
        "cache_bytes_per_source_token": cache.source_token_bytes if cache else 0,
        "cache_bytes_fixed": cache.fixed_bytes if cache else 0,
        "cache_bytes": total - one.weight_bytes,
        "total_bytes": total,
        "fits": _fits(total, available),
    }


def _holding_table(held: list["HoldingMemory"], batch: int, length: int, available: int | None) -> Table:
    columns = [
        "numbers",
        "bytes each",
        "weights",
        "cache a token",
        f"{batch} x {length:,}",
        "together",
        "fits",
    ]
    rows = []
    for one in held:
        total = one.total(batch, length)
        token = one.cache.token_bytes + one.cache.source_token_bytes if one.cache else 0
        rows.append(
            (
                one.number,
                f"{one.weight_bytes / one.parameters:.2f}",
                size(one.weight_bytes),
                size(token) if token else "-",
                size(total - one.weight_bytes) if one.cache else "-",
                size(total),
                _word(total, available),
            )
        )
    return table("To hold", columns, rows, right=columns[1:-1])


def _training_table(step: "TrainingMemory") -> Table:
    training = step.training
    what = f"{training.batch_size} x {training.length:,} positions"
    rows = [
        ("weights", size(step.weight_bytes), _share(step.weight_bytes, step)),
        ("gradients", size(step.gradient_bytes), _share(step.gradient_bytes, step)),
        (f"optimizer {training.optimizer}", size(step.optimizer_bytes), _share(step.optimizer_bytes, step)),
        (f"activations, {what}", size(step.activation_bytes), _share(step.activation_bytes, step)),
        ("most at once", size(step.peak_bytes), _share(step.peak_bytes, step)),
        ("classroom rule", size(step.classroom_bytes), _share(step.classroom_bytes, step)),
    ]
    method = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA, the rest in int4"}[training.method]
    if training.method != "full":
        method += f", rank {training.rank}: {step.trained_parameters:,} parameters learn"
    title = f"To train: {method}, products in {training.dtype}"
    drawn = table(title, ("", "bytes", "a parameter"), rows, right=("bytes", "a parameter"))
    drawn.rows[3].end_section = True
    return drawn


def _share(count: int, step: "TrainingMemory") -> str:
    return f"{count / step.parameters:.2f}"


def _tell_verdict(console: Console, step: "TrainingMemory", available: int | None) -> None:
    console.print("Most at once is not the sum: gradients come while activations go.", style="dim")
    console.print(f"Classroom rule: {_RULE}.", style="dim")
    if available is None:
        return
    left = available - step.peak_bytes
    if left >= 0:
        console.print(f"[green]It fits[/]: {size(left)} of {size(available)} are left.")
    else:
        console.print(f"[red]It does not fit[/]: there are {size(available)}, {size(-left)} too few.")


def _change_table(changes: list["Change"], available: int | None) -> Table:
    rows = [
        (one.what, size(one.memory.peak_bytes), _word(one.memory.peak_bytes, available)) for one in changes
    ]
    return table("What to change", ("change", "most at once", "fits"), rows, right=("most at once",))
