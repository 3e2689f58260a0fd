"""Chains: steps one after the other, each kept when it is done, so that a run can go on after anything."""

from yunque.apps.chains.chain import Chain
from yunque.apps.chains.context import Recalled, StepContext
from yunque.apps.chains.running import ChainRunner, RunResult
from yunque.apps.chains.states import Deletion, RunDeleted, States, open_states
from yunque.apps.chains.steps import Retry, ask, branch, map_over, step
from yunque.apps.chains.work import StepFailed

__all__ = [
    "Chain",
    "ChainRunner",
    "Deletion",
    "Recalled",
    "Retry",
    "RunDeleted",
    "RunResult",
    "States",
    "StepContext",
    "StepFailed",
    "ask",
    "branch",
    "map_over",
    "open_states",
    "step",
]
