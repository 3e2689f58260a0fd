"""Plain questions over documents that have nothing to do with the airline that the ranking was fitted on."""

import pytest

from yunque.apps.retrieval import ingest
from yunque.apps.retrieval.extractive import Finder, Relevance
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig
from yunque.apps.retrieval.sources import Sources
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.workspace import Workspace

_ES = """# Excursiones

El viaje a Lisboa cuesta 320 euros por persona. El autocar sale a las 9:15 de la plaza.

# Pago

El cliente paga con tarjeta o en efectivo. Se cobra un 10 % de recargo si se paga el último día.

# Sauna

La sauna funciona solo en invierno. El gimnasio está prohibido para menores de 16 años.
"""
_EN = """# Leave

Employees get 25 days of paid leave each year. Unused leave expires on 31 March.

# Trips

The trip to Porto costs 280 euros per person. The flight leaves at 7:40 from gate B12.

# People

The company was founded in 1998 in Bilbao by two engineers. Visitors wear a red badge.
"""


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Finder:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "centro.md").write_text(_ES, encoding="utf-8")
    (folder / "handbook.md").write_text(_EN, encoding="utf-8")
    workspace = Workspace.open(folder.with_name("ws"))
    ingest.build(workspace, "d", Sources(paths=(folder,)), IndexConfig())
    return Finder(Index.open(workspace, "d"), Synonyms(), Relevance())


def _answer(finder: Finder, question: str) -> str:
    ranked = finder.candidates(finder.question(question))
    chosen = finder.chosen(ranked) if finder.suffices(ranked) else []
    return " ".join(one.passage.quote(one.unit) for one in chosen)


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("¿Cuánto cuesta el viaje a Lisboa?", "320 euros"),
        ("¿Cómo paga el cliente?", "tarjeta"),
        ("¿Cuándo funciona la sauna?", "invierno"),
        ("How much is the trip to Porto?", "280 euros"),
        ("When does the flight leave?", "7:40"),
        ("How many days of leave do I get?", "25 days"),
        ("When was the company founded?", "1998"),
    ],
)
def test_what_stands_there_is_found(finder: Finder, question: str, fact: str) -> None:
    assert fact in _answer(finder, question)


@pytest.mark.parametrize(
    "question",
    [
        "¿Cuánto cuesta el viaje a París?",
        "¿Cuánto cuesta un libro?",
        "¿Quién es el presidente de Francia?",
        "How much is the trip to London?",
        "How long is paternity leave?",
        "Can I bring my dog to the office?",
    ],
)
def test_what_does_not_is_not_answered(finder: Finder, question: str) -> None:
    assert _answer(finder, question) == ""
