"""Answers by a chain: the question is its input, what its last step gives is the answer."""

import json
from pathlib import Path

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.chains import ChainRunner, StepFailed, open_states
from yunque.apps.chains.index import StateIndex
from yunque.apps.chains.reading import ReadPrompt, read_chain
from yunque.apps.chains.states import place_of_states
from yunque.apps.checks import Exchange
from yunque.apps.definition import AppDefinition
from yunque.apps.heard import Heard
from yunque.apps.prompts import Prompt, load_prompt
from yunque.errors import UserError
from yunque.llm.face import LanguageModel, ModelUnavailable
from yunque.llm.retrying import Refusal
from yunque.workspace import Workspace


class FromChain:
    """Runs the app's chain; each run is kept, and can be looked at and gone on with (`yunque chain`)."""

    index: str | None = None

    def __init__(self, workspace: Workspace, definition: AppDefinition, folder: Path, asking: Asking) -> None:
        """`folder` has the functions and prompts that the steps name."""
        values = {"name": definition.name, "model": definition.model, "steps": definition.steps}
        self._chain = read_chain(
            values,
            asking.ref,
            folder,
            read_prompt=kept_prompts(workspace),
            source={"app": asking.ref},
        )
        place = place_of_states(workspace.root)
        self._states = open_states(place)
        self._recall = StateIndex.open(self._states, place)
        self._asking = asking

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """What the last step gives: a text as it is, anything else as JSON. Raises ModelUnavailable where a step's
        model could not be asked, UserError where a step failed otherwise."""
        del exchange
        heard = Heard()

        def opened(name: str) -> LanguageModel:
            wanted = asked.model if asked.model is not None else name
            return heard.listening(self._asking.models.routed(wanted, asked.who, asked.subject))

        try:
            runner = ChainRunner(self._states, opened, self._recall)
            result = runner.run(self._chain, asked.question, asked.subject)
        except StepFailed as failed:
            raise _told(failed) from None
        value = result.value
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        answer = AppAnswer(
            text.strip(),
            asked.language,
            note=heard.note(asked.language),
            model=heard.models or self._chain.name,
            usage=result.usage,
            cost=result.cost,
            data=None if isinstance(value, str) else value,
            details=(("run", result.run),),
        )
        return Drafted(answer, heard.prompt_hash)

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: what the steps made cannot be made otherwise."""
        del asked, blocked
        return None


def _told(failed: StepFailed) -> Exception:
    """What whoever asked is told of a step that failed: not the reason, which may hold whatever the step read."""
    cause = failed.__cause__
    if isinstance(cause, Refusal):
        return cause
    return ModelUnavailable(failed.told) if isinstance(cause, ModelUnavailable) else UserError(failed.told)


def kept_prompts(workspace: Workspace | None) -> ReadPrompt | None:
    """How the prompts are found that steps name and that do not lie beside the app's file."""
    if workspace is None:
        return None
    return lambda name, where: _kept_prompt(workspace, name, where)


def _kept_prompt(workspace: Workspace, name: str, where: str) -> Prompt:
    try:
        return load_prompt(workspace, name)[0]
    except UserError as error:
        raise UserError(f"{where}: there is no such file beside the app, and {error}") from None
