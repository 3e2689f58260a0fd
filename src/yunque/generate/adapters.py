"""The LoRA adapters that texts of one model go through, loaded and dropped while others are read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from yunque.errors import UserError
from yunque.model import LanguageModel
from yunque.model.adapter_files import load_lora
from yunque.model.formats.files import Files
from yunque.model.lora import (
    Selection,
    lora_names,
    remove_lora,
    select_adapter,
    selected_adapter,
    selection_of,
)

# Rows that are alike go through an adapter as one batch where they are not fewer than the adapters fill up to.
_ALIKE_ROWS = 16


class Adapters:
    """Adapters of `model` by name; a text without one goes through the model as it came. Used from one thread.

    Each that is loaded gets a key of its own, so that another may come under its name while texts still use it.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._own = selected_adapter(model)
        self._selection: Selection | None = selection_of(model)
        self._keys: dict[str, str] = {}
        self._users = Counter[str]()
        self._serial = count(1)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that a text can be opened with."""
        return tuple(self._keys)

    def load(self, name: str, files: Files) -> None:
        """Read an adapter from a folder, or from files given by name.

        Raises UserError for a name that is taken, and for files that are damaged, of another model, or no LoRA.
        """
        if name in self._keys:
            raise UserError(
                f"an adapter {name!r} is loaded already: drop it first, or give this one another name"
            )
        key = f"{name}#{next(self._serial)}"
        try:
            load_lora(self._model, files, key)
        finally:
            self._settle()
        self._keys[name] = key

    def drop(self, name: str) -> None:
        """No text is opened with it from now on; its memory is free when the last one that uses it is over.

        Raises UserError where there is none of this name.
        """
        key = self.key(name)
        assert key is not None
        del self._keys[name]
        if not self._users[key]:
            self._remove(key)

    def key(self, name: str | None) -> str | None:
        """What the adapter called so is known by. Raises UserError where it is not loaded."""
        if name is not None and name not in self._keys:
            raise UserError(f"no adapter {name!r} is loaded (there are {', '.join(self._keys) or 'none'})")
        return None if name is None else self._keys[name]

    def enter(self, key: str | None) -> None:
        """Count a text that uses it."""
        if key is not None:
            self._users[key] += 1

    def leave(self, key: str | None) -> None:
        """Count a text less."""
        if key is None:
            return
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            if key not in self._keys.values():
                self._remove(key)

    def choose(self, keys: Sequence[str | None]) -> None:
        """Let the rows of the next call go through these."""
        if self._selection is None:
            return
        names = [self._own if key is None else key for key in keys]
        alike = len(set(names)) == 1 and (names[0] is None or len(names) == 1 or len(names) >= _ALIKE_ROWS)
        device = next(self._model.parameters()).device
        self._selection.choose(names[0] if alike else names, device)

    @contextmanager
    def selected(self, name: str | None) -> Iterator[None]:
        """Let the whole model be that of an adapter inside of this block, for work that is none of a runner's."""
        self.choose([self.key(name)])
        try:
            yield
        finally:
            self.choose([None])

    def _remove(self, key: str) -> None:
        remove_lora(self._model, key)
        self._settle()

    def _settle(self) -> None:
        self._selection = selection_of(self._model)
        if self._selection is not None:
            select_adapter(self._model, self._own if self._own in lora_names(self._model) else None)
