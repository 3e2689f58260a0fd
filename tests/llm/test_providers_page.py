"""`docs/providers.md` says what the code does."""

from pathlib import Path

from yunque.generate.config import GenerationConfig
from yunque.llm.anthropic_form import ANTHROPIC
from yunque.llm.gemini_wire import GEMINI
from yunque.llm.openai_form import COMPATIBLE, DIALECTS
from yunque.llm.providers import PROVIDERS

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
COLUMNS = {
    "OpenAI": DIALECTS["openai"].settings,
    "another server": COMPATIBLE,
    "vLLM": DIALECTS["vllm"].settings,
    "Ollama": DIALECTS["ollama"].settings,
    "llama-server": DIALECTS["llamacpp"].settings,
    "Anthropic": ANTHROPIC,
    "Gemini": GEMINI,
}
BY_CODE = ("max_new_tokens", "format", "truncate")


def table() -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for field in GenerationConfig.model_fields:
        if field in BY_CODE:
            continue
        cells = [settings[field] for settings in COLUMNS.values()]
        told = ["no" if cell is None else f"`{cell.rpartition('.')[2]}`" for cell in cells]
        lines.append(f"| `{field}` | " + " | ".join(told) + " |")
    return "\n".join(lines)


def test_every_setting_has_a_place_in_every_adapter() -> None:
    for settings in COLUMNS.values():
        assert set(settings) == set(GenerationConfig.model_fields)


def test_the_table_of_settings_is_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert shown == table(), f"put this into docs/providers.md:\n{table()}"


def test_the_page_names_every_provider_its_key_and_its_source() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for each in PROVIDERS.values():
        assert f"`{each.example}`" in page
        for variable in (*each.keys, *each.addresses):
            assert f"`{variable}`" in page, variable
        assert not each.data_read or each.data_read in page
