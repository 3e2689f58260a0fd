"""Settings of tuning."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from yunque.configuration import Settings
from yunque.model.lora import LoraSettings
from yunque.train.adapter import PromptTuningSettings
from yunque.train.early_stopping import EarlyStoppingSettings
from yunque.train.mixture import MixtureSettings
from yunque.train.settings import LoopSettings, OptimizerSettings

# What `protect` sets, where nothing else is said: chosen by measurement (docs/forgetting.md).
PROTECTED: Mapping[str, Any] = {
    "replay": 2,
    "replay_weight": 0.0,
    "kl": {"replayed": 0.25},
    "replay_tasks": True,
    "own_text": 20_000,
}


class DivergenceSettings(Settings):
    """How much KL(base || model) counts, in nats a position: on the `replayed` text, and on the `prompts` of the rows
    (each row's mean; a decoder-only model alone has it)."""

    replayed: float = Field(default=0.0, ge=0)
    prompts: float = Field(default=0.0, ge=0)


class TuneSettings(LoopSettings):
    """Settings of `yunque tune`.

    With `seconds` the run has at most as many steps as fit. `replay` windows of what the base model was trained on
    (or of `replay_data`) are read in each step as well, so that less of it is forgotten; their loss counts
    `replay_weight` times. Where nothing of that is at hand, the base writes `own_text` tokens itself before the
    first step, and these are replayed. With `replay_tasks` every second window is of rows that the base was tuned
    on earlier, in the chat format. `kl` holds the model to its base. With `lora` an adapter is trained and the base
    is not; it is kept, and merged into the tuned model. With `prompt` vectors before every text are trained: an
    adapter, and the model stays what it is. `mixture` says how often the rows of each task are read; without it
    every row is read as often as any other. `protect` sets what holds a model to what it knew, where nothing else
    is said.
    """

    name: str | None = None
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-3)
    epochs: float = Field(default=10.0, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    replay: int = Field(default=1, ge=0)
    replay_weight: float = Field(default=1.0, ge=0)
    replay_data: tuple[str, ...] = ()
    own_text: int = Field(default=0, ge=0)
    replay_tasks: bool = False
    kl: DivergenceSettings = DivergenceSettings()
    lora: LoraSettings | None = None
    prompt: PromptTuningSettings | None = None
    mixture: MixtureSettings | None = None
    early_stopping: EarlyStoppingSettings | None = None
    protect: bool = False

    @model_validator(mode="before")
    @classmethod
    def _overlay_protection(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("protect") is not True:
            return values
        overlaid = dict(values)
        for name, value in PROTECTED.items():
            given = overlaid.get(name, {} if isinstance(value, dict) else None)
            if isinstance(value, dict) and isinstance(given, dict):
                overlaid[name] = {**value, **given}
            elif given is None:
                overlaid[name] = value
        return overlaid

    @model_validator(mode="after")
    def _check_ways(self) -> Self:
        if self.lora is not None and self.prompt is not None:
            raise ValueError("lora and prompt exclude each other: one adapter is trained at a time")
        if self.prompt is not None and self.protect:
            raise ValueError(
                "protect holds a model that changes, and with prompt it stays as it is: drop protect"
            )
        if self.prompt is not None and (self.kl.replayed or self.kl.prompts):
            raise ValueError("a prompt leaves the model as it is: kl is for lora and full tuning")
        if self.replay and not self.replay_weight and not self.kl.replayed:
            raise ValueError("replay_weight 0 without kl.replayed reads text for nothing: make replay 0")
        if self.kl.replayed and not self.replay:
            raise ValueError("kl.replayed needs replayed text: make replay 1 or more")
        return self

    @property
    def together(self) -> int:
        """Rows that the model reads at once."""
        return self.rows_at_once(self.batch_size)
