"""What `--protect` keeps and what it costs: plain tuning, the default and --protect, over seeds.

    yunque tokenizer train ... ; yunque train ... --name mini            # a model to start from
    python benchmarks/protect.py mini --data FILE_OR_DATASET [--seeds 3] [epochs=6 batch_size=32 ...]

"plain" reads nothing again (replay=0). A line has means over seeds, with the 95 % interval of a bootstrap over seeds
for what is forgotten; "less" is how much less is forgotten than by plain tuning, "cost" what of its target is lost.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from yunque.cli.show import bars
from yunque.configuration import resolve
from yunque.data.instructions import shipped_instructions
from yunque.evaluate.evaluation import instruction_dataset
from yunque.evaluate.metrics import bootstrap_interval
from yunque.evaluate.tuning import HeldOut, general_datasets, tune_with_report
from yunque.train import TuneSettings
from yunque.workspace import Workspace

WAYS: dict[str, list[str]] = {"plain": ["replay=0"], "default": [], "--protect": ["protect=true"]}


def measured(
    workspace: Workspace, given: argparse.Namespace, way: str, seed: int, settings: Sequence[str]
) -> dict[str, float]:
    """Target accuracy, loss on text and accuracy on other tasks before and after one tuning."""
    training = (
        instruction_dataset(workspace, given.data, "train") if given.data else shipped_instructions(workspace)
    )
    name = f"{given.model}-{way.strip('-')}-{seed}"
    resolved = resolve(TuneSettings, None, [*settings, *WAYS[way], f"seed={seed}", f"name={name}"])
    general = [workspace.get(ref, "dataset") for ref in given.general] or general_datasets(
        workspace, given.model
    )
    held_out = HeldOut([training], general)
    _, made, _ = tune_with_report(workspace, given.model, [training], held_out, resolved, bars)
    return made.figures


def summary(figures: Sequence[dict[str, float]], name: str) -> dict[str, Any]:
    """Mean before, after and of the change, with its interval over seeds."""
    changes = [each[f"{name}_after"] - each[f"{name}_before"] for each in figures]
    low, high = bootstrap_interval(changes)
    after = sum(each[f"{name}_after"] for each in figures) / len(figures)
    return {"after": after, "change": sum(changes) / len(changes), "low": low, "high": high}


def main() -> None:
    """Tune, measure and print a line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("settings", nargs="*", help="settings of `yunque tune`")
    parser.add_argument("--data", help="instruction rows with a training and a held-out split")
    parser.add_argument("--general", action="append", default=[], help="dataset of text with a test split")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args()
    workspace = Workspace.open()
    results: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        figures = [measured(workspace, given, way, seed, given.settings) for seed in range(given.seeds)]
        results[way] = {
            name: summary(figures, name)
            for name in ("accuracy", "general_loss", "other_accuracy")
            if f"{name}_after" in figures[0]
        }
    if given.json:
        print(json.dumps(results, indent=2))
        return
    plain = results["plain"]
    for way, line in results.items():
        cost = 1 - line["accuracy"]["after"] / plain["accuracy"]["after"]
        print(f"{way:10} target {line['accuracy']['after']:.1%} (cost {cost:+.1%})", end="")
        for name, sign in (("general_loss", 1), ("other_accuracy", -1)):
            if name in line:
                lost, of = sign * line[name]["change"], sign * plain[name]["change"]
                low, high = sorted(sign * line[name][end] for end in ("low", "high"))
                kept = f", {1 - lost / of:.0%} less" if of > 0 else ""
                print(f"; {name} lost {lost:+.3f} ({low:+.3f} to {high:+.3f}{kept})", end="")
        print()


if __name__ == "__main__":
    main()
