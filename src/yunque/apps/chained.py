"""Answers by a chain: the question is its input, what its last step gives is the answer."""

import hashlib
import json
from pathlib import Path

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.chains import ChainRunner, StepFailed, open_states
from yunque.apps.chains.index import StateIndex
from yunque.apps.chains.reading import ReadPrompt, read_chain
from yunque.apps.checks import Exchange
from yunque.apps.definition import AppDefinition
from yunque.apps.prompts import Prompt, load_prompt
from yunque.errors import UserError
from yunque.llm.face import LanguageModel, ModelUnavailable
from yunque.workspace import Workspace


class FromChain:
    """Runs the app's chain; each run is kept, and can be looked at and gone on with (`yunque chain`)."""

    index: str | None = None

    def __init__(self, workspace: Workspace, definition: AppDefinition, folder: Path, asking: Asking) -> None:
        """`folder` has the functions and prompts that the steps name."""
        values = {"name": definition.name, "model": definition.model, "steps": definition.steps}
        self._chain = read_chain(values, asking.ref, folder, read_prompt=kept_prompts(workspace))
        self._states = open_states(workspace.root)
        self._recall = StateIndex.open(self._states, workspace.root)
        self._asking = asking

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """What the last step gives: a text as it is, anything else as JSON. Raises ModelUnavailable where a step's
        model could not be asked, UserError where a step failed otherwise."""
        del exchange
        used: list[str] = []

        def opened(name: str) -> LanguageModel:
            model = self._asking.models.routed(asked.model if asked.model is not None else name, asked.who)
            used.append(model.name)
            return model

        try:
            result = ChainRunner(self._states, opened, self._recall).run(self._chain, asked.question)
        except StepFailed as failed:
            if isinstance(failed.__cause__, ModelUnavailable):
                raise ModelUnavailable(str(failed)) from None
            raise UserError(str(failed)) from None
        value = result.value
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        answer = AppAnswer(
            text.strip(),
            asked.language,
            model=", ".join(dict.fromkeys(used)) or self._chain.name,
            usage=result.usage,
            cost=result.cost,
            data=None if isinstance(value, str) else value,
            details=(("run", result.run),),
        )
        asked_with = json.dumps([self._chain.outline, asked.question], ensure_ascii=False)
        return Drafted(answer, hashlib.sha256(asked_with.encode()).hexdigest())

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: what the steps made cannot be made otherwise."""
        del asked, blocked
        return None


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
