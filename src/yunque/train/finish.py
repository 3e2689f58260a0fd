"""What every run does around the loop: its plan before, its model artifact after."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from yunque.processes import world_size
from yunque.train.corpus import RowKey
from yunque.train.cost import cost_of
from yunque.train.curves import draw_curves, read_log
from yunque.train.distributed import added_up, first_makes
from yunque.train.loop import Tell
from yunque.train.run import Run
from yunque.train.schedule import TrainingPlan
from yunque.workspace import Artifact, Workspace, atomic_write
from yunque.workspace.artifact import Kind


def settled_plan(run: Run, make: Callable[[], TrainingPlan], tell: Tell) -> TrainingPlan:
    """The plan in run.json, or a new one, which is kept there and told."""
    if "plan" in run.record:
        return TrainingPlan(**run.record["plan"])
    own = make()
    # All processes measure at once, as they will work at once: the first one's plan counts, with their mean speed.
    speed = sum(added_up([own.matmul_gflops])) / world_size()
    plan = first_makes(lambda: replace(own, matmul_gflops=round(speed, 1)), TrainingPlan)
    run.keep(plan=plan.as_dict())
    for sentence in plan.sentences():
        tell(sentence)
    return plan


def rows_seen_file(run: Run, seen: Counter[RowKey]) -> bytes:
    """rows_seen.json: for each dataset, the rows that were trained on and in how many windows or batches."""
    datasets: dict[str, dict[str, int]] = {}
    for (dataset, row), count in sorted(seen.items()):
        datasets.setdefault(dataset, {})[row] = count
    return json.dumps({"run": run.name, "datasets": datasets}, ensure_ascii=False, indent=1).encode()


def keep_files(
    workspace: Workspace,
    run: Run,
    name: str,
    made: Mapping[str, bytes],
    parents: Sequence[Artifact],
    seen: Counter[RowKey],
    measured: Mapping[str, Any] | None = None,
    kind: Kind = "model",
) -> Artifact:
    """Make the artifact of a run that is over (a model or an adapter), note it in run.json, drop the checkpoints.

    `measured` goes among its figures. Of several processes the first one does it, and all get the artifact.
    """

    def keep() -> Artifact:
        log = read_log(run.folder / "loss.jsonl")
        files: Mapping[str, bytes] = {
            **made,
            "loss.jsonl": (run.folder / "loss.jsonl").read_bytes(),
            "curves.png": draw_curves(log, run.name),
            "rows_seen.json": rows_seen_file(run, seen),
        }
        # Blobs have no names: a person looks at the picture in the run's folder.
        atomic_write(run.folder / "curves.png", files["curves.png"])
        last = log[-1]
        figures: dict[str, Any] = {
            "parameters": run.record["plan"]["parameters"],
            "steps": last["step"],
            **cost_of(last, run.record["plan"], run.record.get("preparation", {})).as_dict(),
            "loss": last["loss"],
            "rows_seen": len(seen),
        }
        if "validation_loss" in last:
            figures["validation_loss"] = last["validation_loss"]
        figures |= measured or {}
        config = {**run.record["configuration"], "run": run.name}
        artifact = workspace.put(kind, name, files, parents, config, figures)
        run.keep(artifact=artifact.ref)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return artifact

    return first_makes(keep, Artifact)
