"""What a model may be called, wherever it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.llm import open_model
from yunque.llm.names import parse_remote
from yunque.llm.open import open_remote
from yunque.llm.providers import PROVIDERS, data_rank_of, provider_of
from yunque.llm.scripted import ScriptedModel
from yunque.workspace import Artifact, Workspace


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PROVIDERS.values():
        for variable in (*each.keys, *each.addresses):
            monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("mini", "local"),
        ("model/mini@2", "local"),
        ("adapter/x", "local"),
        ("openai/gpt-4o-mini", "openai"),
        ("vllm/Qwen/Qwen3-8B", "vllm"),
        ("ollama/llama3.2:3b", "ollama"),
        ("ollama/gpt-oss:120b-cloud", "ollama.com"),
        ("ollama/glm:Cloud", "ollama.com"),
        ("http://h:9/v1#m", "h:9"),
        ("https://h/v1#m", "h:443"),
        ("scripted:x.yaml", "scripted"),
        ("openai", "local"),
    ],
)
def test_who_answers_is_told_by_the_name(name: str, provider: str) -> None:
    assert provider_of(name) == provider
    remote = None if name.startswith("scripted") else parse_remote(name)
    assert (remote is None) == (provider in ("local", "scripted"))


@pytest.mark.parametrize(
    ("name", "variable", "value", "base_url"),
    [
        ("openai/m", None, "", "https://api.openai.com/v1"),
        (
            "openai/m",
            "OPENAI_BASE_URL",
            "https://proxy.example/openai/v1/",
            "https://proxy.example/openai/v1",
        ),
        ("anthropic/m", "ANTHROPIC_BASE_URL", "https://proxy.example", "https://proxy.example/v1"),
        ("gemini/m", "GEMINI_BASE_URL", "https://proxy.example", "https://proxy.example/v1beta"),
        ("ollama/m", None, "", "http://127.0.0.1:11434/v1"),
        ("ollama/m", "OLLAMA_HOST", "0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("ollama/m", "OLLAMA_HOST", "box:1234", "http://box:1234/v1"),
        ("ollama/m", "OLLAMA_HOST", "https://box", "https://box/v1"),
        ("vllm/m", "VLLM_BASE_URL", "http://[::1]:9/v1", "http://[::1]:9/v1"),
    ],
)
def test_the_environment_may_say_where_a_provider_is(
    name: str, variable: str | None, value: str, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    remote = parse_remote(name)
    assert remote is not None and (remote.base_url, remote.model) == (base_url, "m")


@pytest.mark.parametrize("value", ["ftp://x", "http://u:p@x", "http://x:y", "http://", "http://x?y"])
def test_an_address_in_the_environment_that_is_none_is_named(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    with pytest.raises(UserError, match="OLLAMA_HOST"):
        parse_remote("ollama/m")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("opnai/gpt-4o", "openai/gpt-4o"),
        ("antropic/claude-x", "anthropic/claude-x"),
        ("olama/llama3.2", "ollama/llama3.2"),
        ("modl/mini", "model/mini"),
        ("gpt-4o-mini", "openai/gpt-4o-mini"),
        ("claude-x", "anthropic/claude-x"),
    ],
)
def test_a_slip_of_the_finger_is_asked_about(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        open_model(Workspace.open(tmp_path / "ws"), name)


@pytest.mark.parametrize(
    "name", ["openai/", "gemini/a b", "gemini/../x", "gemini/a?key=1", "zzz/m", "ftp://x#m"]
)
def test_a_name_that_is_none_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        open_model(Workspace.open(tmp_path / "ws"), name)


def test_a_model_of_the_workspace_may_have_a_providers_name(
    tmp_path: Path, put_tiny_model: Callable[..., Artifact]
) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace, "openai")
    put_tiny_model(workspace, "gpt-mini")
    assert open_model(workspace, "openai").local and open_model(workspace, "gpt-mini").local
    with pytest.raises(UserError, match="not a model of a provider"):
        open_remote(workspace, "openai")


def test_rules_in_a_file_stand_for_a_model(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - when: hola\n    reply: ¡Hola!\notherwise: adiós\n")
    opened = open_model(Workspace.open(tmp_path / "ws"), f"scripted:{path}")
    assert isinstance(opened, ScriptedModel) and opened.local


def test_what_a_provider_does_with_data_has_its_source_and_date() -> None:
    for each in PROVIDERS.values():
        assert each.data_use and each.data_use_es and each.data_rank in range(4)
        assert not each.needs_key or (each.data_source.startswith("https://") and each.data_read)
    assert data_rank_of(PROVIDERS["ollama"], "http://127.0.0.1:1/v1") == 0
    assert data_rank_of(PROVIDERS["ollama"], "http://box:1/v1") == 1
    assert data_rank_of(PROVIDERS["openai"], "http://127.0.0.1:1/v1") == 2


def test_what_ollama_passes_on_does_not_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from yunque.llm.policy import WirePolicy

    here, elsewhere = parse_remote("ollama/llama3.2"), parse_remote("ollama/gpt-oss:120b-cloud")
    assert here and here.provider and elsewhere and elsewhere.provider
    assert data_rank_of(here.provider, here.base_url) == 0
    assert data_rank_of(elsewhere.provider, elsewhere.base_url) == 2
    assert "ollama.com" in elsewhere.provider.data_use and "ollama.com" in elsewhere.provider.data_use_es
    # What is allowed to go to a server of one's own is not allowed to go on from there.
    policy = WirePolicy(where=("ollama",))
    assert policy.allows(open_remote(None, "ollama/llama3.2"))
    assert not policy.allows(open_remote(None, "ollama/gpt-oss:120b-cloud"))
    assert WirePolicy(where=("ollama.com",)).allows(open_remote(None, "ollama/gpt-oss:120b-cloud"))
    monkeypatch.setenv("OLLAMA_HOST", "https://ollama.com")
    assert provider_of("ollama/gpt-oss:120b") == "ollama.com"
    monkeypatch.setenv("OLLAMA_HOST", "ollama.company.example")
    assert provider_of("ollama/gpt-oss:120b") == "ollama"


def test_a_providers_word_is_not_that_of_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = parse_remote("openai/gpt-4o-mini")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")
    assert usual and usual.provider == PROVIDERS["openai"] == parse_remote("openai/m").provider  # type: ignore[union-attr]
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example/v1")
    told = parse_remote("openai/gpt-4o-mini")
    assert told and told.provider and data_rank_of(told.provider, told.base_url) == 4
    assert "OPENAI_BASE_URL sends it to proxy.example" in told.provider.data_use
    assert not told.provider.data_source and "proxy.example" in told.provider.data_use_es
