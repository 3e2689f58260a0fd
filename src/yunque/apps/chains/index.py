"""The states of runs in the vector store, so that later steps and later runs can look them up.

What is in the store is a copy: a state that is gone from the runs is not found, and the store is brought up to date
before each look and after each deletion, whatever was killed in between.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from yunque.apps.chains.context import Recalled
from yunque.apps.chains.state_rows import StateRow
from yunque.apps.chains.states import Deletion, States
from yunque.apps.keeping.holding import Held
from yunque.apps.keeping.json_values import to_text
from yunque.apps.retrieval.texts import Text, TextSearch
from yunque.errors import UserError

FILE = "chains-search.db"
_PIECE_CHARACTERS = 2000
_MOST_PIECES = 100
_BATCH = 200


class StateIndex:
    """Looks up the states of runs by their text."""

    def __init__(self, states: States, search: TextSearch) -> None:
        self.states, self.search = states, search

    @classmethod
    def open(cls, states: States, address: Path | str) -> "StateIndex":
        """The index in the workspace folder `address`, or at the address of another store."""
        where = address / FILE if isinstance(address, Path) else address
        return cls(states, TextSearch.open(where))

    def __call__(
        self, query: str, k: int = 5, chain: str | None = None, run: str | None = None
    ) -> list[Recalled]:
        """The finished states nearest to a query, best first; those of one `chain` or `run` only, if named."""
        self.bring_up_to_date()
        where = {name: value for name, value in (("chain", chain), ("run", run)) if value is not None}
        found: dict[tuple[str, str], Recalled] = {}
        # A state may have several pieces: more are asked for than are told.
        for hit in self.search.search(query, 3 * k, where=where):
            place = (str(hit.metadata["run"]), str(hit.metadata["path"]))
            state = self.states.state(*place)
            if place not in found and state is not None and state.done:
                found[place] = Recalled(*place, str(hit.metadata["chain"]), hit.text, hit.score)
        return list(found.values())[:k]

    def bring_up_to_date(self) -> None:
        """Put in what was finished since, take out what was deleted."""
        if not self.states.to_index(1) and not self.states.to_unindex():
            return
        with self._alone():
            # Where somebody reads the old bytes they are out of the way, and overwritten the next time.
            with suppress(UserError):
                self._take_out()
            while states := self.states.to_index(_BATCH):
                chains = {id: self.states.run(id).chain for id in {state.run for state in states}}
                texts = [text for state in states for text in _texts(state, chains[state.run])]
                if texts:
                    self.search.put(texts)
                self.states.mark_indexed(states)

    def delete(self, runs: Sequence[str], with_branches: bool = False) -> Deletion:
        """Delete runs and what the store has of them; none of them can be written to again."""
        with self._alone():
            done = self.states.delete(runs, with_branches)
            self._take_out()
        return done

    def forget(self, subject: str) -> Deletion:
        """Delete all runs about a person, and their branches."""
        return self.delete(self.states.of_subject(subject), with_branches=True)

    def prune(self, older: timedelta) -> Deletion:
        """Delete runs that ended longer ago than that and that no newer run shares states with."""
        return self.delete(self.states.older(older), with_branches=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with self.states.hold_index():
                yield
        except Held:
            raise UserError("the index of states is being changed by another process; try again") from None

    def _take_out(self) -> None:
        gone = self.states.to_unindex()
        for run in gone:
            if ids := self.search.ids(where={"run": run}):
                self.search.erase(ids)
        self.states.mark_unindexed(gone)


def _texts(state: StateRow, chain: str) -> list[Text]:
    """A state as texts to look up: none where there are no words in it."""
    whole = state.value if isinstance(state.value, str) else to_text(state.value)
    if not any(letter.isalpha() for letter in whole) or whole in ("true", "false", "null"):
        return []
    metadata = {"run": state.run, "path": state.path, "chain": chain}
    starts = range(0, min(len(whole), _PIECE_CHARACTERS * _MOST_PIECES), _PIECE_CHARACTERS)
    return [
        Text(f"{state.run}/{state.path}#{number}", whole[start : start + _PIECE_CHARACTERS], metadata)
        for number, start in enumerate(starts)
    ]
