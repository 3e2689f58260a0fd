"""The models of an app: its file's budget beside the administrator's, and whose answers its cache keeps."""

from pathlib import Path

import pytest

from yunque.apps.definition import AppDefinition
from yunque.apps.models import AppModels
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ScriptedModel
from yunque.llm.routing import open_cache
from yunque.workspace import Workspace
from yunque.workspace.budgets import Budgets

CONFIG = GenerationConfig(max_new_tokens=9)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


def models(workspace: Workspace, **fields: object) -> AppModels:
    definition = AppDefinition.model_validate(
        {
            "name": "x",
            "model": "m",
            "prompt": {"user": {"es": "x"}},
            "guards": [{"check": "length", "stages": ["input"], "limit": 99}],
            **fields,
        }
    )
    model = ScriptedModel(lambda _: "vale", "m")
    return AppModels(workspace, definition, "app/x@1", lambda _: model)


def test_the_apps_file_does_not_lift_the_administrators_budget(workspace: Workspace) -> None:
    budgets = Budgets.of(workspace.root)
    budgets.set("app/x", usd=2.0, tokens=500_000)
    models(workspace, budget={"usd_a_day": 10}).routed("m").chat([Message("user", "hola")], CONFIG)
    found = {each.source: (each.usd, each.tokens) for each in budgets.list()}
    assert found == {"set": (2.0, 500_000), "file": (10.0, None)}
    # What the file does not say any more does not hold any more.
    models(workspace).routed("m").chat([Message("user", "hola")], CONFIG)
    assert [each.source for each in budgets.list()] == ["set"]


def test_answers_kept_for_a_person_are_forgotten_with_them(workspace: Workspace) -> None:
    app = models(workspace, cache={})
    for subject in ("ana", "eva"):
        app.routed("m", ["key/abc"], subject).chat([Message("user", f"hola {subject}")], CONFIG)
    cache = open_cache(workspace)
    assert len(cache) == 2
    assert cache.forget("ana") == 1 and len(cache) == 1
