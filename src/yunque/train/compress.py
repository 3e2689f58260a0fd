"""Quantizing a model of the workspace, and measuring what was lost by it."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yunque.data.dataset import read_rows, splits_of
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.model import LanguageModel, load_model, quantize_model, save_model
from yunque.model.opening import open_files
from yunque.model.quantization_report import Difference, LayerError, layer_errors, linear_ratio
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.sample import Batch, measured_perplexity, own_batches, run, text_batches
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name
from yunque.workspace.files import sha256_of

# Enough to tell a difference of a thousandth in perplexity; half a minute more would not change it.
_MEASURED_TOKENS = 16_384
# Tokens that int4 is rounded for, and those on which layers are compared.
_CALIBRATION_TOKENS = 8_192
_COMPARED_TOKENS = 1_024
# Layers that the figures name; all of them are in a file.
_WORST = 8
LAYERS_FILE = "quantization.jsonl"


@dataclass(frozen=True)
class _Texts:
    """Rows to measure on, those to round for (others, never the same), and what they are, for the report."""

    measured: Sequence[Row] = ()
    calibration: Sequence[Row] = ()
    names: tuple[str, ...] = ()


def quantize(
    workspace: Workspace,
    ref: str,
    kind: str = "int8",
    group_size: int = 64,
    name: str | None = None,
    data: str | None = None,
    text: Path | None = None,
    progress: Progress = silent,
) -> Artifact:
    """A copy of a model in fewer bits as the artifact `name` (else NAME-KIND).

    It is measured on the rows of `data` (its test split, if it has one), on the file `text`, or on the test splits of
    what the model was trained on; where there are none its figures have no perplexity. Int4 is rounded for training
    rows, or for what the model writes itself. `quantization.jsonl` has every layer. Raises UserError.
    """
    if data and text:
        raise UserError("--data and --text exclude each other: a model is measured on one of them")
    if name:
        checked_name(name)
    base = workspace.get(ref, "model")
    files = workspace.files(base)
    checkpoint = open_files(files)
    if (data or text) and checkpoint.tokenizer is None:
        raise UserError(
            f"{base.ref} has no tokenizer, so it cannot be measured on text: import it with --tokenizer"
        )
    texts = _texts(workspace, base, data, text)
    # Halves are widened: on a CPU they are slower, and what is measured is their rounding, not that of sums.
    before = load_model(files, torch.float32)
    after = quantize_model(
        before,
        kind,
        group_size,
        _calibration(before, checkpoint.tokenizer, texts, progress) if kind == "int4" else None,
    )
    figures, layers = _measure(before, after, checkpoint.tokenizer, texts, progress)
    made = save_model(after)
    figures["bytes_before"] = sum(entry.bytes for entry in checkpoint.source.entries.values())
    figures["bytes_after"] = len(made["model.safetensors"])
    kept = {path: file for path, file in checkpoint.kept.items() if path != "config.json"}
    lines = [json.dumps(layer.as_dict()) + "\n" for layer in layers]
    return workspace.put(
        "model",
        name or f"{base.name}-{kind}",
        {**kept, **made, LAYERS_FILE: "".join(lines).encode()},
        parents=[base],
        config={
            "quantization": kind,
            "group_size": group_size if kind == "int4" else None,
            "base": base.ref,
            "rounded_for": ("training rows" if texts.calibration else "own text") if kind == "int4" else None,
        },
        figures=figures,
    )


def _texts(workspace: Workspace, base: Artifact, data: str | None, text: Path | None) -> _Texts:
    """The rows to measure on; raises UserError where those that were named do not exist or are empty."""
    if text is not None:
        return _Texts([_row_of_file(text)], (), (str(text),))
    datasets = [workspace.get(data, "dataset")] if data else _datasets_of(workspace, base)
    datasets = [one for one in datasets if data or "test.jsonl" in one.files]
    if data and not set(splits_of(datasets[0])) <= {
        path.removesuffix(".jsonl") for path in datasets[0].files
    }:
        raise UserError(f"{datasets[0].ref} holds no texts: name a dataset that `yunque data add` made")
    measured, calibration = list[Row](), list[Row]()
    for dataset in datasets:
        if "test.jsonl" in dataset.files:
            measured += read_rows(workspace, dataset, "test")
            calibration += read_rows(workspace, dataset, "train")
        else:
            measured += read_rows(workspace, dataset)
    if data and not measured:
        raise UserError(f"{datasets[0].ref} has no rows to measure on")
    return _Texts(measured, calibration, tuple(dataset.ref for dataset in datasets) if measured else ())


def _datasets_of(workspace: Workspace, model: Artifact) -> list[Artifact]:
    """The datasets that a model, or the one that it was made of, was trained on."""
    datasets: list[Artifact] = []
    for ref in model.parents:
        parent = workspace.get(ref)
        if parent.kind == "dataset":
            datasets.append(parent)
        elif parent.kind == "model":
            datasets += _datasets_of(workspace, parent)
    return datasets


def _row_of_file(path: Path) -> Row:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    if not text.strip():
        raise UserError(f"{path}: holds no text to measure on")
    return Row(row_id(path.name, text), text, "und", Source(path.name, sha256_of(path), "all"), path.name)


def _batches(
    model: LanguageModel, tokenizer: Tokenizer | None, rows: Sequence[Row], most_tokens: int
) -> list[Batch]:
    """Batches of these rows; where they have nothing for this model, what it can be taken through without text."""
    batches = [] if tokenizer is None else text_batches(model, tokenizer, rows, most_tokens)
    return batches or own_batches(model)


def _calibration(
    model: LanguageModel, tokenizer: Tokenizer | None, texts: _Texts, progress: Progress
) -> Callable[[LanguageModel], None]:
    batches = _batches(model, tokenizer, texts.calibration, _CALIBRATION_TOKENS)

    @torch.inference_mode()
    def calibrate(model: LanguageModel) -> None:
        with progress("Reading what int4 is rounded for", total=len(batches)) as task:
            for batch in batches:
                run(model, batch)
                task.advance(1)

    return calibrate


def _measure(
    before: LanguageModel,
    after: LanguageModel,
    tokenizer: Tokenizer | None,
    texts: _Texts,
    progress: Progress,
) -> tuple[dict[str, Any], list[LayerError]]:
    """The figures of the whole model, and every layer."""
    batches = _batches(before, tokenizer, texts.measured, _COMPARED_TOKENS)
    computing = after if after.config.quantization_config else copy.deepcopy(after).float()
    outputs = Difference()

    @torch.inference_mode()
    def compare(model: LanguageModel) -> None:
        for batch in batches:
            outputs.add(run(model, batch), run(computing, batch))

    layers = layer_errors(before, after, compare)
    perplexities: list[float | None] = [None, None]
    if tokenizer is not None and texts.measured:
        perplexities = [
            measured_perplexity(model, tokenizer, texts.measured, _MEASURED_TOKENS, progress)
            for model in (before, computing)
        ]
    was, now = perplexities
    worst = sorted(layers, key=lambda layer: layer.output_error or layer.weight_error, reverse=True)
    figures = {
        "linear_ratio": linear_ratio(layers),
        "perplexity_before": was,
        "perplexity_after": now,
        "perplexity_change": None if was is None or now is None else now / was - 1,
        "measured_on": list(texts.names) if was is not None else [],
        "output_error": outputs.relative,
        "layers": len(layers),
        "worst_layers": [layer.as_dict() for layer in worst[:_WORST]],
    }
    return figures, layers
