"""Keys of providers: kept sealed, found in their order, sent to their own host alone, never shown."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fake_provider import FakeProvider, Fault
from typer.testing import CliRunner

from yunque.cli.provider_key import register
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable
from yunque.llm.open import open_remote
from yunque.llm.providers import PROVIDERS
from yunque.workspace import Workspace
from yunque.workspace.provider_keys import ProviderKeys

KEPT = "sk-kept-0123456789"
FROM_ENVIRONMENT = "sk-environment-0123"
QUESTION = [Message("user", "¿?")]
CONFIG = GenerationConfig()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    variables = [name for each in PROVIDERS.values() for name in (*each.keys, *each.addresses)]
    for variable in (*variables, "YUNQUE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as made:
        yield made


def kept(workspace: Workspace) -> ProviderKeys:
    return ProviderKeys(workspace.root, workspace.keys)


def test_a_key_is_found_again_and_lies_nowhere_in_the_clear(workspace: Workspace) -> None:
    kept(workspace).set("openai", f"  {KEPT}\n")
    assert kept(workspace).find("openai") == KEPT
    assert kept(workspace).find("gemini") is None
    for path in workspace.root.rglob("*"):
        if path.is_file():
            assert KEPT.encode() not in path.read_bytes(), path
    file = workspace.root / "provider_keys.json"
    assert file.stat().st_mode & 0o077 == 0
    assert list(kept(workspace).times()) == ["openai"]
    assert kept(workspace).unset("openai") and not kept(workspace).unset("openai")
    assert kept(workspace).find("openai") is None


def test_one_providers_key_cannot_be_passed_off_as_anothers(workspace: Workspace) -> None:
    keys = kept(workspace)
    keys.set("openai", KEPT)
    file = workspace.root / "provider_keys.json"
    entries = json.loads(file.read_bytes())
    file.write_text(json.dumps({"anthropic": entries["openai"]}))
    with pytest.raises(UserError, match="cannot be opened"):
        keys.find("anthropic")
    file.write_text("{nope")
    with pytest.raises(UserError, match="is not a file of keys"):
        keys.find("openai")


@pytest.mark.parametrize("key", ["", " \n", "sk a", "sk-ñ", "sk\x00", "x" * 5000])
def test_what_cannot_be_a_key_is_refused_without_showing_it(workspace: Workspace, key: str) -> None:
    with pytest.raises(UserError) as caught:
        kept(workspace).set("openai", key)
    assert len(key.strip()) < 3 or key not in str(caught.value)


def test_the_environment_comes_first(
    workspace: Workspace, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url("openai"))
    model = open_remote(workspace, "openai/mini")
    with pytest.raises(
        ModelUnavailable, match=r"needs an API key: set OPENAI_API_KEY, or run `yunque key set openai`"
    ):
        model.chat(QUESTION, CONFIG)
    assert provider.asked == []
    kept(workspace).set("openai", KEPT)
    model.chat(QUESTION, CONFIG)
    monkeypatch.setenv("OPENAI_API_KEY", FROM_ENVIRONMENT)
    model.chat(QUESTION, CONFIG)
    assert [asked.headers["authorization"] for asked in provider.asked] == [
        f"Bearer {KEPT}",
        f"Bearer {FROM_ENVIRONMENT}",
    ]


def test_a_providers_key_does_not_go_to_another_host(
    workspace: Workspace, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", FROM_ENVIRONMENT)
    kept(workspace).set("anthropic", KEPT)
    model = open_remote(workspace, provider.url("openai") + "#mini")
    model.chat(QUESTION, CONFIG)
    assert "authorization" not in provider.asked[0].headers
    # The control: its own key does.
    kept(workspace).set(f"127.0.0.1:{provider.server_port}", "its-own")
    model.chat(QUESTION, CONFIG)
    assert provider.asked[1].headers["authorization"] == "Bearer its-own"


def test_a_key_does_not_travel_in_the_clear(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", FROM_ENVIRONMENT)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1/v1")
    with pytest.raises(UserError, match="in the clear"):
        open_remote(workspace, "openai/mini")
    monkeypatch.setenv("OLLAMA_HOST", "http://192.0.2.1")
    monkeypatch.setenv("OLLAMA_API_KEY", FROM_ENVIRONMENT)
    assert open_remote(workspace, "ollama/mini")._headers() == {}
    monkeypatch.setenv("OLLAMA_HOST", "https://192.0.2.1")
    assert open_remote(workspace, "ollama/mini")._headers() != {}


def test_a_key_with_odd_characters_is_told_and_leaves_another_model_its_chance(
    workspace: Workspace, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUNQUE_API_KEY", "sk\nInjected: header")
    with pytest.raises(ModelUnavailable, match="YUNQUE_API_KEY holds characters") as caught:
        open_remote(workspace, provider.url("openai") + "#mini").chat(QUESTION, CONFIG)
    assert "Injected" not in str(caught.value) and not caught.value.again


def test_a_kept_key_that_cannot_be_opened_leaves_another_model_its_chance(
    workspace: Workspace, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.root / "provider_keys.json").write_text('{"ollama": {"sealed": "AAAA"}}')
    monkeypatch.setenv("OLLAMA_HOST", provider.url("openai"))
    with pytest.raises(ModelUnavailable, match="cannot be opened here") as caught:
        open_remote(workspace, "ollama/mini").chat(QUESTION, CONFIG)
    assert not caught.value.again and provider.asked == []


def test_no_key_is_in_what_a_provider_says_of_it(
    workspace: Workspace, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUNQUE_API_KEY", "opaque")
    message = "Incorrect API key provided: opaque, or sk-proj-abcdef123456 or AIzaSyA0123456789abcdef."
    provider.faults = [Fault("status", status=401, message=message)]
    with pytest.raises(ModelUnavailable) as caught:
        open_remote(workspace, provider.url("openai") + "#mini").chat(QUESTION, CONFIG)
    assert not any(word in str(caught.value) for word in ("opaque", "abcdef"))


def test_the_commands_keep_list_and_forget_a_key(workspace: Workspace) -> None:
    app = typer.Typer()
    register(app)
    runner = CliRunner()
    done = runner.invoke(app, ["set", "openai"], input=f"{KEPT}\n")
    assert done.exit_code == 0 and KEPT not in done.output
    assert kept(workspace).find("openai") == KEPT
    listed = runner.invoke(app, ["providers", "--json"])
    assert KEPT not in listed.output
    by_name = {each["provider"]: each for each in json.loads(listed.stdout)}
    assert by_name["openai"]["key"] == "workspace" and by_name["gemini"]["key"] is None
    assert KEPT not in runner.invoke(app, ["providers"]).output
    assert KEPT not in (workspace.root / "audit.jsonl").read_text()
    assert runner.invoke(app, ["unset", "openai"]).exit_code == 0
    assert kept(workspace).find("openai") is None
    for wrong in ("opnai", "../x", ""):
        failed = runner.invoke(app, ["set", wrong], input="k\n")
        assert isinstance(failed.exception, UserError)
    assert "did you mean openai" in str(runner.invoke(app, ["set", "opnai"], input="k\n").exception)
