"""What a model of an agent may see: marks in the place of personal data, and nothing that tries to give it orders."""

from dataclasses import dataclass
from typing import Any

from yunque.apps.checks import Checked, Exchange
from yunque.data.personal import Redaction, find_personal_data


@dataclass(frozen=True)
class Seen:
    """A result as a model may see it; `suspicion` is what was found in it, and None where nothing was."""

    text: str
    suspicion: str | None = None
    withheld: bool = False


class Privacy:
    """The checks of one run. With the `exchange` of an app's guard its marks are used, else our own for a remote
    model; a local model without a guard sees everything."""

    def __init__(self, exchange: Exchange | None, model_is_local: bool) -> None:
        self._exchange, self._local = exchange, model_is_local
        self._redaction = Redaction()

    def question(self, text: str) -> Checked:
        """The question as the model may see it."""
        if self._exchange is None:
            return Checked(self._marked(text))
        checked = self._exchange.input(text)
        return Checked(self._marked(checked.text), checked.verdicts)

    def result(self, text: str) -> Seen:
        """What a tool returned, after the guard's stage `context`."""
        if self._exchange is None:
            return Seen(self._marked(text))
        checked = self._exchange.context(text)
        found = [verdict for verdict in checked.verdicts if verdict.outcome in ("block", "unknown")]
        evidence = (
            "; ".join(f"{verdict.check}: {verdict.evidence}"[:200] for verdict in found) if found else None
        )
        if checked.blocked:
            return Seen("", evidence, withheld=True)
        return Seen(self._marked(checked.text), evidence)

    def restored(self, value: Any) -> Any:
        """A JSON value with the personal data back in the place of its marks."""
        if isinstance(value, str):
            text = self._redaction.restore(value)
            return self._exchange.restore(text) if self._exchange else text
        if isinstance(value, list):
            return [self.restored(one) for one in value]
        if isinstance(value, dict):
            return {name: self.restored(one) for name, one in value.items()}
        return value

    def output(self, text: str, sources: list[str]) -> Checked:
        """The answer, before the user reads it; marks are still in it."""
        return self._exchange.output(text, sources) if self._exchange else Checked(text)

    def _marked(self, text: str) -> str:
        # A local model is shown what the guard leaves; what goes to another machine has no personal data left in it.
        # A text in which nothing is found stays as it is, so that the guard's own marks are not marked again.
        if self._local or not find_personal_data(text):
            return text
        return self._exchange.for_the_log(text) if self._exchange else self._redaction.redact(text)
