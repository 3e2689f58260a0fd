"""A guard: the checks that an app's definition lists, run on what goes in, what is read, and what comes out."""

from collections import Counter
from collections.abc import Sequence

from yunque.apps.checks import Checked, Outcome, Stage, Verdict
from yunque.apps.definition import AppDefinition, CheckSettings
from yunque.data.personal import Redaction, find_personal_data
from yunque.guard.injection import suspect_injection
from yunque.guard.leak import PromptLeak, find_echo

LONGEST_LOGGED = 20_000
"""Characters of a question or an answer that the call log keeps."""
LONGEST_QUESTION = 4000
"""Characters of a question when an app's `length` check names no limit of its own."""


class CheckList:
    """The checks of one app; see `yunque.apps.checks.Guard`."""

    def __init__(self, checks: Sequence[CheckSettings]) -> None:
        self._checks = tuple(checks)

    @classmethod
    def of(cls, definition: AppDefinition) -> "CheckList":
        """The guard that an app's definition asks for, and the check that its policy asks for in any case."""
        checks = list(definition.guards)
        listed = any(check.check == "personal_data" and "input" in check.stages for check in checks)
        if definition.policy.personal_data == "redact" and not listed:
            checks.append(CheckSettings(check="personal_data", stages=["input"]))
        return cls(checks)

    def exchange(self, protected: Sequence[str], public: Sequence[str] = ()) -> "GuardedExchange":
        """Open the checks of one question and its answer."""
        return GuardedExchange(self._checks, PromptLeak(protected, public))


class GuardedExchange:
    """One question and its answer under guard; see `yunque.apps.checks.Exchange`."""

    def __init__(self, checks: Sequence[CheckSettings], leak: PromptLeak) -> None:
        self._checks, self._leak = checks, leak
        self._redaction = Redaction()
        self._question = ""

    def input(self, text: str) -> Checked:
        """Take the user's personal data out, then look for what should not get further."""
        checked = self._run("input", text)
        self._question = checked.text
        return checked

    def earlier(self, text: str) -> Checked:
        """Look at a turn before the question."""
        return self._run("input", text, measured=False)

    def context(self, text: str) -> Checked:
        """Look at a passage that a model is about to read."""
        return self._run("context", text)

    def output(self, text: str, sources: Sequence[str] = ()) -> Checked:
        """Look at an answer. What `sources` (the cited documents) say openly, a telephone number say, may be said."""
        return self._run("output", text, sources)

    def for_the_log(self, text: str) -> str:
        """The text with marks in the place of personal data, whatever checks the app lists."""
        return self._redaction.redact(text[:LONGEST_LOGGED])

    def restore(self, text: str) -> str:
        """Put the user's own personal data back."""
        return self._redaction.restore(text)

    def _run(self, stage: Stage, text: str, sources: Sequence[str] = (), measured: bool = True) -> Checked:
        verdicts: list[Verdict] = []
        # Length first, for the others take time; then personal data, so that their evidence holds none.
        order = ("length", "personal_data")
        for check in sorted(self._checks, key=lambda one: (*order, one.check).index(one.check)):
            if stage not in check.stages or (check.check == "length" and not measured):
                continue
            outcome, evidence, text = self._judge(check, stage, text, sources)
            if outcome != "pass":
                verdicts.append(Verdict(check.check, stage, outcome, evidence))
            if check.check == "length" and outcome == "block":
                break
        return Checked(text, tuple(verdicts))

    def _judge(
        self, check: CheckSettings, stage: Stage, text: str, sources: Sequence[str]
    ) -> tuple[Outcome, str, str]:
        match check.check:
            case "personal_data":
                return self._personal_data(stage, text, sources)
            case "injection":
                suspicion = suspect_injection(text)
                return ("block" if suspicion.weight >= 1 else "pass"), suspicion.evidence, text
            case "prompt_leak":
                found = self._leak.find(text, self._question)
            case "echo":
                found = find_echo(text, self._question)
            case "length":
                limit = check.limit or LONGEST_QUESTION
                found = f"{len(text)} characters, {limit} are allowed" if len(text) > limit else ""
        return ("block" if found else "pass"), found, text

    def _personal_data(self, stage: Stage, text: str, sources: Sequence[str]) -> tuple[Outcome, str, str]:
        said = {found.canonical for source in sources for found in find_personal_data(source)}
        findings = [found for found in find_personal_data(text) if found.canonical not in said]
        kinds = Counter(found.kind for found in findings)
        evidence = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        if stage == "output":
            # Never restored: only the user's own data has a mark that stands for it, and it was put in before.
            for found in reversed(findings):
                text = f"{text[: found.start]}[{found.kind}]{text[found.end :]}"
            return ("redact" if findings else "pass"), evidence, text
        return ("redact" if findings else "pass"), evidence, self._redaction.redact(text)
