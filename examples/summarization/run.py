"""Dialogue summarization: zero-, one- and few-shot, then tuned in full, then with LoRA, by ROUGE.

python examples/summarization/run.py
"""

import csv
import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dialogues import KINDS, SUMMARY, Dialogue, dialogues
from recipe import Options, Outcome, Table, greedy_texts, read_text, run_recipe, text_dataset
from safetensors.torch import load_file

from yunque.cli.show import bars
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.errors import UserError
from yunque.evaluate.metrics import bootstrap_interval, rouge
from yunque.generate.conversation import encode_prompt
from yunque.generate.engine import Engine
from yunque.model.lora import LoraSettings
from yunque.tokenizer.training import train_tokenizer
from yunque.train import PretrainSettings, TuneSettings, pretrain, tune, tuning_rows
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings
from yunque.workspace import Artifact

READ, TUNED, TEST = 8_000, 300, 100
SHOTS = (0, 1, 3)
STEPS, EPOCHS = 450, 8
MARK = "=>"
_ASKED = {"en": "Summarize the dialogue in one sentence.", "es": "Resume el diálogo en una frase."}
# Of a file of the user's: dialogues of at most so many characters, so that three examples fit in a context.
_LONGEST = 700
_CONTEXT, _LONG_CONTEXT = 512, 1024


def _read_dialogues(path: Path) -> list[Dialogue]:
    """Dialogues of a CSV file with the columns dialogue and summary (and topic), or of `dialogsum_train.csv`."""
    file = path / "dialogsum_train.csv" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--data: {file}: there is no such file")
    found: dict[str, Dialogue] = {}
    with io.StringIO(read_text(file), newline="") as lines:
        for line in csv.DictReader(lines):
            text, summary = (line.get("dialogue") or "").strip(), (line.get("summary") or "").strip()
            if text and summary and len(text) <= _LONGEST:
                notes = {
                    SUMMARY: summary,
                    "beginning": text.partition("\n")[0].partition(": ")[2] or text[:40],
                }
                if topic := (line.get("topic") or "").strip():
                    notes["topic"] = topic
                found.setdefault(text, Dialogue(text, "en", notes))
    if len(found) < 3 * TEST:
        raise UserError(
            f"--data: {file} has {len(found)} short dialogues with a summary: too few to learn from"
        )
    made = list(found.values())
    random.Random(1).shuffle(made)
    return made


def _noted(one: Dialogue, kind: str) -> str:
    return f"{one.text}\n{MARK} {one.notes[kind]}\n\n"


def _documents(some: Sequence[Dialogue], kinds: Sequence[str], random_: random.Random) -> list[str]:
    """What the base reads: four dialogues with a note under each, all of one kind, which is nowhere named."""
    documents = []
    for start in range(0, len(some) - 3, 4):
        kind = random_.choice(kinds)
        noted = [_noted(one, kind) for one in some[start : start + 4] if kind in one.notes]
        if noted:
            documents.append("".join(noted))
    return documents


def _row(number: int, one: Dialogue) -> InstructionRow:
    return InstructionRow(
        f"dialogue-{number}",
        "summary",
        one.language,
        "plain",
        _ASKED[one.language],
        one.text,
        one.notes[SUMMARY],
    )


def _base(options: Options, read: Sequence[Dialogue]) -> Artifact:
    """A model that has read dialogues with notes, and no instruction."""
    workspace, random_ = options.workspace, random.Random(2)
    kinds = sorted(set().union(*(one.notes for one in read))) if options.data else KINDS
    documents = _documents(read, kinds, random_)
    cut = max(1, len(documents) // 50)
    splits = {"train": documents[2 * cut :], "validation": documents[:cut], "test": documents[cut : 2 * cut]}
    data = text_dataset(workspace, "dialogues", splits)
    tokenizer = train_tokenizer(workspace, "pieces", [data.ref], 4096 if options.data else 1024)
    settings = PretrainSettings(
        name="reader",
        data=(data.ref,),
        tokenizer=tokenizer.ref,
        model=ModelSettings(hidden_size=128, layers=3, context=_LONG_CONTEXT if options.data else _CONTEXT),
        batch_size=1 if options.quick else 4,
        steps=options.steps(STEPS),
        precision="float32",
    )
    return pretrain(workspace, settings, bars)


def _prompted(
    options: Options,
    base: Artifact,
    test: Sequence[Dialogue],
    examples: Sequence[Dialogue],
    shots: int,
    most: int,
) -> list[str]:
    """What the base writes under each dialogue, after as many dialogues of its language with their summaries."""
    engine, random_ = Engine.open(options.workspace, base.ref), random.Random(shots)
    prompts = []
    for one in test:
        shown = random_.sample([other for other in examples if other.language == one.language], shots)
        text = "".join(_noted(other, SUMMARY) for other in shown) + f"{one.text}\n{MARK}"
        prompts.append(engine.tokenizer.encode_prompt(text)[-(engine.context - most) :])
    return [text.partition("\n")[0].strip() for text in greedy_texts(engine, prompts, most)]


def _tuned(options: Options, base: Artifact, rows: Sequence[Dialogue], lora: LoraSettings | None) -> Artifact:
    workspace = options.workspace
    data = write_instructions(workspace, "summaries", {"train": [_row(*pair) for pair in enumerate(rows)]})
    settings = TuneSettings(
        name="tuned-lora" if lora else "tuned-full",
        optimizer=OptimizerSettings(learning_rate=1e-2 if lora else 1e-3, weight_decay=0.0),
        epochs=0.1 if options.quick else EPOCHS * options.scale,
        batch_size=4 if options.quick else 16,
        replay=0,
        lora=lora,
        precision="float32",
    )
    return tune(workspace, base.ref, [tuning_rows(workspace, data)], settings, bars)


def _asked(options: Options, model: Artifact, test: Sequence[Dialogue], most: int) -> list[str]:
    engine = Engine.open(options.workspace, model.ref)
    rows = [_row(*pair) for pair in enumerate(test)]
    prompts = [encode_prompt(engine.tokenizer, engine.model, [("user", row.question)]) for row in rows]
    return greedy_texts(engine, prompts, most)


def _line(name: str, trained: str, written: Sequence[str], test: Sequence[Dialogue]) -> list[str]:
    wanted = [one.notes[SUMMARY] for one in test]
    scores = rouge(written, wanted)
    each = [rouge([ours], [theirs])["rougeL"] for ours, theirs in zip(written, wanted, strict=True)]
    low, high = bootstrap_interval(each)
    return [
        name,
        trained,
        f"{scores['rouge1']:.3f}",
        f"{scores['rouge2']:.3f}",
        f"{scores['rougeL']:.3f} ({low:.3f} to {high:.3f})",
    ]


def experiment(options: Options) -> Outcome:
    """Read dialogues, show examples, tune, and compare the summaries."""
    count = 80 if options.quick else READ + TUNED + TEST
    every = _read_dialogues(options.data)[:count] if options.data else dialogues(count, seed=1)
    held_out, tuned_on = (4, 24) if options.quick else (TEST, TUNED)
    test, rows, read = every[:held_out], every[held_out : held_out + tuned_on], every[held_out + tuned_on :]
    most = 8 if options.quick else 64 if options.data else 40
    base = _base(options, read)
    beginnings = [one.text.partition("\n")[0].partition(": ")[2] for one in test]
    written = {"the first turn, as it is": (beginnings, "")}
    for shots in SHOTS:
        name = f"base, {shots} example{'' if shots == 1 else 's'}"
        written[name] = (_prompted(options, base, test, rows, shots, most), "0")
    for name, lora in (("tuned in full", None), ("tuned with LoRA", LoraSettings())):
        model = _tuned(options, base, rows, lora)
        weights = base.figures["parameters"]
        if lora is not None:
            adapter = options.workspace.get("tuned-lora", "adapter")
            stored = load_file(options.workspace.file(adapter, "adapter_model.safetensors"))
            weights = sum(tensor.numel() for tensor in stored.values())
        written[name] = (_asked(options, model, test, most), f"{weights:,}")
    lines = [_line(name, trained, texts, test) for name, (texts, trained) in written.items()]
    columns = ("model", "weights trained", "ROUGE-1", "ROUGE-2", "ROUGE-L (95 % interval)")
    findings = [f"Wanted: “{test[0].notes[SUMMARY]}”"]
    findings += [f"{name}: “{texts[0]}”" for name, (texts, _) in written.items()]
    title = f"{len(test)} dialogues that no model has read; tuned on {len(rows)}"
    return Outcome([Table(title, columns, lines)], findings)


if __name__ == "__main__":
    run_recipe(
        "summarization", __doc__, experiment, "a CSV file with the columns dialogue and summary, or dialogsum"
    )
