"""The runner of a model: the native step where it can compute it, PyTorch for all else."""

from collections.abc import Sequence

from torch import Tensor

from yunque.generate.lone_runner import LoneRunner
from yunque.generate.native_runner import NativeRunner, native_runner
from yunque.generate.runner import Text, Work
from yunque.generate.torch_runner import TorchRunner, TorchText, torch_runner
from yunque.model import LanguageModel
from yunque.model.formats.files import Files


class NativeWithAdapters:
    """The native step for texts of the base, PyTorch for those with an adapter; all in one pool."""

    can_truncate = True

    def __init__(self, native: NativeRunner, torch: TorchRunner) -> None:
        self.pool = torch.pool
        self.adapters = torch.adapters
        self._native, self._torch = native, torch

    def load_adapter(self, name: str, files: Files) -> None:
        """See `Adapters.load`."""
        self._torch.load_adapter(name, files)

    def drop_adapter(self, name: str) -> None:
        """See `Adapters.drop`."""
        self._torch.drop_adapter(name)

    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> Text:
        """See `Runner`."""
        return self._torch.open(prompt, fresh, adapter)

    def run(self, works: Sequence[Work]) -> list[Tensor]:
        """See `Runner`."""
        adapted = [_has_adapter(work) for work in works]
        scores: list[Tensor | None] = [None] * len(works)
        for runner, is_adapted in ((self._native, False), (self._torch, True)):
            places = [place for place, one in enumerate(adapted) if one == is_adapted]
            if places:
                found = runner.run([works[place] for place in places])
                for place, scores_WV in zip(places, found, strict=True):
                    scores[place] = scores_WV
        return [one for one in scores if one is not None]


def _has_adapter(work: Work) -> bool:
    assert isinstance(work.text, TorchText)
    return work.text.adapter is not None


AnyRunner = NativeWithAdapters | TorchRunner | LoneRunner


def open_runner(model: LanguageModel, pool_bytes: int | None = None) -> AnyRunner:
    """The quickest runner that there is for `model`, with `pool_bytes` for texts under way (see `make_pool`).

    Raises UserError for a model that writes no text.
    """
    runner = torch_runner(model, pool_bytes)
    if not isinstance(runner, TorchRunner):
        return runner
    native = native_runner(model, runner.pool)
    return runner if native is None else NativeWithAdapters(native, runner)
