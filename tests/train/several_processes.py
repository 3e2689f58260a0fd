"""What one of several processes does in test_distributed: runs that are told on standard input, one after the other.

A job is `{"kind", "settings", "data", "stop", "unweighted"}`; what each ended with goes to standard output as JSON.
"""

import json
import sys
from unittest import mock

import torch
from broken_off import StopAt
from small_alignments import share_of_vowels  # noqa: F401 (a reward, found by its name)

from yunque.errors import UserError
from yunque.progress import silent
from yunque.train import PretrainSettings, TuneSettings, parallel, pretrain, tune, tuning_rows
from yunque.train.align import DpoSettings, RewardSettings, train_dpo, train_reward
from yunque.train.align_rollouts import GrpoSettings, PpoSettings, train_grpo, train_ppo
from yunque.train.objective import group_weights
from yunque.workspace import Artifact, Workspace

ALIGNMENTS = {
    "dpo": (DpoSettings, train_dpo),
    "reward": (RewardSettings, train_reward),
    "ppo": (PpoSettings, train_ppo),
    "grpo": (GrpoSettings, train_grpo),
}


def work(workspace: Workspace, job: dict) -> Artifact:
    progress = StopAt(job["stop"]) if "stop" in job else silent
    kind, values = job["kind"], {"precision": "float32", **job["settings"]}
    if kind == "pretrain":
        return pretrain(workspace, PretrainSettings.model_validate(values), progress)
    data = workspace.get(job["data"], "dataset")
    if kind == "tune":
        settings = TuneSettings.model_validate(values)
        return tune(workspace, job["base"], [tuning_rows(workspace, data)], settings, progress)
    cls, train = ALIGNMENTS[kind]
    return train(workspace, job["base"], data, cls.model_validate(values), progress)


def own_weights(parts):
    """What a process would weigh its parts by that knows of no other."""
    return group_weights(
        [part for _, part in parallel.share_out(parts, parallel.rank(), parallel.world_size())]
    )


def outcome(workspace: Workspace, job: dict) -> str:
    try:
        if job.get("unweighted"):
            with mock.patch.object(parallel, "group_weights", own_weights):
                return work(workspace, job).ref
        return work(workspace, job).ref
    except UserError as error:
        return f"error: {error}"
    except RuntimeError as error:
        if str(error) != "crash":
            raise
        return "crash"


if __name__ == "__main__":
    torch.set_num_threads(1)
    opened = Workspace.open(sys.argv[1])
    print(json.dumps([outcome(opened, job) for job in json.load(sys.stdin)]))
