"""States that are opened again and again, as by one process after another."""

from pathlib import Path

from yunque.apps.chains import States, open_states


class Reopen:
    """Opens the same states again, as another process would."""

    def __init__(self, place: Path | str) -> None:
        self.place = place
        self._opened: list[States] = []

    def __call__(self) -> States:
        self._opened.append(open_states(self.place))
        return self._opened[-1]

    def close(self) -> None:
        """Close all that was opened."""
        while self._opened:
            self._opened.pop().database.close()
