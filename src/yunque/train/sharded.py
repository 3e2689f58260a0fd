"""A model cut in slices: each process holds one of every weight and of its moments, and a layer is put together only
while it is used (torch's FSDP2; Zhao et al. 2023, arXiv:2304.11277)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from yunque.model import LanguageModel
from yunque.model.simulation import stacks_of
from yunque.processes import world_size
from yunque.train.distributed import first_found, gathered
from yunque.train.parallel import Team, Work


class Shards(Team):
    """Each process holds a slice of every weight. The model that the team is made of stays whole in the machine's
    memory, and gets what was learned when `finish` puts it there."""

    def __init__(self, model: LanguageModel, seed: int, device: torch.device) -> None:
        super().__init__(seed)
        self._whole = model
        # The same numbers in other parameters: they are copied when they are cut in slices.
        twins: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()
        }
        twins |= {id(buffer): buffer.detach() for buffer in model.buffers()}
        self.model = copy.deepcopy(model, twins)
        mesh = init_device_mesh(device.type, (world_size(),))
        layers = [layer for stack in stacks_of(self.model) for layer in stack]
        self._sliced: list[FSDPModule] = [fully_shard(layer, mesh=mesh) for layer in layers]
        # Embeddings and heads are used from anywhere inside a pass, so they stay whole from its start to its end.
        self._wrapped = Work(self.model)
        self._sliced.append(fully_shard(self._wrapped, mesh=mesh, reshard_after_forward=False))

    def _work(self, work: Callable[[], Tensor], last: bool) -> Tensor:
        del last  # gradients go to where their slices are after every part: no process holds all of them
        result: Tensor = self._wrapped(work)
        return result

    def measured(self, measure: Callable[[], float | None]) -> float | None:
        """All processes measure together."""
        found = list[float | None]()

        def work() -> Tensor:
            found.append(measure())
            return torch.zeros(())

        with torch.no_grad():
            self._work(work, True)
        for part in self._sliced:
            part.reshard()
        return first_found(found[0])

    @torch.no_grad()
    def finish(self) -> None:
        """Put the weights together again, one at a time."""
        for whole, slices in zip(self._whole.parameters(), self.model.parameters(), strict=True):
            if whole.requires_grad:
                whole.copy_(gathered(slices))
