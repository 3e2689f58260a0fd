"""What is done with what was found: fusing, spreading, reranking, judging, calibrating; and texts without an
index."""

from collections.abc import Sequence
from math import log2
from pathlib import Path

import numpy as np
import pytest

from yunque.apps.retrieval.calibration import best_floor, calibrated_floor
from yunque.apps.retrieval.conditions import parse_conditions
from yunque.apps.retrieval.embedders import HashingEmbedder, ModelEmbedder, open_embedder
from yunque.apps.retrieval.extractive import Finder
from yunque.apps.retrieval.fusion import maximal_marginal_relevance, reciprocal_rank_fusion, score_fusion
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.judgements import measure_judged, measures, read_asked, read_judgements
from yunque.apps.retrieval.rerank import ScoringReranker, SentenceReranker
from yunque.apps.retrieval.stores import Between
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.texts import Text, TextSearch
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, Embeddings, Message, Prompt
from yunque.workspace import Workspace


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    assert reciprocal_rank_fusion([["a", "b"], ["b", "c"]]) == pytest.approx(
        {"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62}
    )
    assert reciprocal_rank_fusion([["a"], ["b"]], [2.0, 1.0])["a"] == pytest.approx(2 / 61)


def test_diversity_puts_copies_behind_and_none_changes_nothing() -> None:
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    scores, vectors = [1.0, 0.99, 0.9], [one, one, other]
    assert maximal_marginal_relevance(scores, vectors, 3, 0.0) == [0, 1, 2]
    assert maximal_marginal_relevance(scores, vectors, 3, 0.5) == [0, 2, 1]


def test_a_search_with_diversity_has_the_same_best_hit(workspace: Workspace) -> None:
    index = Index.open(workspace, "small")
    plain, spread = (index.search("la maleta facturada", 4, diversity=d) for d in (0.0, 0.7))
    assert plain[0] == spread[0] and len(spread) == 4


def test_feedback_finds_what_shares_words_with_what_was_found() -> None:
    from yunque.apps.retrieval.passages import Passage, Unit

    texts = ["zorro rojo madriguera", "madriguera profunda tierra", "barco velero puerto", "puerto mar barco"]
    index = Index.of(
        [Passage(str(n), t, "", "es", "", 0, len(t), t, (Unit(0, len(t)),)) for n, t in enumerate(texts)]
    )
    found = [hit.passage.file for hit in index.search("zorro", 4, feedback=True) if hit.keyword > 0]
    assert found[:2] == texts[:2]
    assert [h.passage.file for h in index.search("zorro", 4) if h.keyword > 0] == texts[:1]


class _Likes:
    """A model to which "yes" is likely where a passage has a word."""

    name = "likes"

    def __init__(self, word: str) -> None:
        self.word = word

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        passage = str(messages[-1].content).split("Pregunta:")[0].split("Question:")[0]
        assert answers in (("sí", "no"), ("yes", "no"))
        return [-0.1, -3.0] if self.word in passage else [-3.0, -0.1]


def test_a_scoring_model_puts_first_what_it_says_yes_to(workspace: Workspace) -> None:
    hits = Index.open(workspace, "small").search("precio de llevar la mascota y cambiar el vuelo", 5, "es")
    again = ScoringReranker(_Likes("fecha del vuelo")).reranked("precio", hits)
    assert "fecha del vuelo" in again[0].passage.text and "fecha del vuelo" not in hits[0].passage.text
    assert {hit.id for hit in again} == {hit.id for hit in hits} and again[0].score > 0 > again[1].score


def test_the_ranking_model_puts_first_what_has_the_answer(workspace: Workspace) -> None:
    index = Index.open(workspace, "small")
    hits = index.search("¿Cuánto cuesta llevar una mascota en cabina?", 5, "es")
    again = SentenceReranker(Finder(index, Synonyms())).reranked(
        "¿Cuánto cuesta llevar una mascota en cabina?", hits[::-1]
    )
    assert "50 EUR" in again[0].passage.text and len(again) == len(hits)


class _Encoder:
    """Makes a vector of each text's first letters, and takes no more than 40 characters."""

    name = "model/encoder@1"

    def __init__(self) -> None:
        self.read: list[str] = []

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        self.read += map(str, texts)
        if any(len(text) > 40 for text in texts):
            raise ContextOverflow("too long", 0)
        return Embeddings([[float(len(text)), 1.0] for text in texts], 0)


def test_a_model_embeds_long_texts_in_halves_and_a_remote_one_sees_no_personal_data() -> None:
    encoder = _Encoder()
    vectors = ModelEmbedder(encoder, local=True).embed([("corto", "es"), ("una palabra " * 30, "es")])
    assert vectors.shape == (2, 2) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    text = "Escribe a ana@example.org"
    ModelEmbedder(encoder, local=True).embed([(text, "es")])
    assert encoder.read[-1] == text
    ModelEmbedder(encoder, local=False).embed([(text, "es")])
    assert "ana@example.org" not in encoder.read[-1] and "Escribe a" in encoder.read[-1]


def test_hashed_vectors_tell_forms_of_a_word_from_other_words() -> None:
    first, form, other = HashingEmbedder().embed(
        [("facturación", "es"), ("facturar", "es"), ("caballo", "es")]
    )
    assert first @ form > 0.5 > first @ other


@pytest.mark.parametrize("name", ["hashing-3", "hashing-x", "nothing at all", "gpt"])
def test_an_embedder_that_there_is_not_is_a_mistake_of_the_user(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        open_embedder(Workspace.open(tmp_path), name)


def test_texts_can_be_found_at_once_and_are_gone_when_deleted(tmp_path: Path) -> None:
    search = TextSearch.open(tmp_path / "texts.db")
    search.put(
        [
            Text("1", "Ana prefiere el asiento de ventanilla.", {"turn": 1, "who": "ana"}, ("ana",)),
            Text("2", "Luis pidió un menú vegetariano para el vuelo.", {"turn": 2, "who": "luis"}),
            Text("3", "The customer wants a window seat.", {"turn": 3}),
        ]
    )
    assert search.search("asientos de ventanilla", 2)[0].id == "1"
    assert search.search("window seats", 1)[0].id == "3"
    assert "1" not in [one.id for one in search.search("asiento de ventanilla", 5, groups={"luis"})]
    assert [one.id for one in search.search("asiento menú", 5, where={"turn": Between(2, 3)})] == ["2"]
    assert search.ids({"who": "ana"}) == ["1"] and search.count(groups=set()) == 2
    assert search.erase(["1"]) == 1 and search.get(["1"]) == []
    assert "1" not in [one.id for one in search.search("asiento de ventanilla", 5)]
    assert TextSearch.open(tmp_path / "texts.db").search("menú vegetariano")[0].text.startswith("Luis")


def test_measures_of_a_ranking_by_hand() -> None:
    found, grades = ["a", "x", "b", "y"], {"a": 1, "b": 3, "c": 2}
    m = measures(found, grades, 4)
    dcg = 1 / log2(2) + 7 / log2(4)
    ideal = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert m == pytest.approx(
        {"precision": 0.5, "recall": 2 / 3, "ndcg": dcg / ideal, "mrr": 1.0, "success": 1.0}
    )
    assert measures(["b", "c", "a"], grades, 4)["ndcg"] == pytest.approx(1.0)
    assert measures(["x"], grades, 4)["success"] == 0.0


def test_an_index_is_measured_by_judgements(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"id": "q1", "question": "exceso de peso de la maleta"}\n{"id": "q2", "question": "no judgement"}\n'
    )
    (tmp_path / "qrels").write_text("q1 0 es/equipaje.md 2\nq1 0 en/pets.md 0\n")
    figures = measure_judged(workspace, "small", tmp_path / "q.jsonl", tmp_path / "qrels", 3)
    assert figures["questions"] == 1 and figures["success_at_3"] == figures["ndcg_at_3"] == 1.0
    (tmp_path / "stems").write_text("query-id\tcorpus-id\tscore\nq1\tequipaje\t1\n")
    assert measure_judged(workspace, "small", tmp_path / "q.jsonl", tmp_path / "stems", 3)["mrr_at_3"] == 1.0
    with pytest.raises(UserError, match="ids the same"):
        (tmp_path / "other").write_text("zz 0 a 1\n")
        measure_judged(workspace, "small", tmp_path / "q.jsonl", tmp_path / "other", 3)


@pytest.mark.parametrize("text", ["a", "a b c d e", "a 0 d high", ""])
def test_a_broken_line_of_judgements_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "qrels").write_text(f"q 0 d 1\n{text}\n" if text else "")
    with pytest.raises(UserError, match=r"qrels(:2)?:"):
        read_judgements(tmp_path / "qrels")
    (tmp_path / "questions").write_text("1\tuna pregunta\nsin tabulador\n")
    with pytest.raises(UserError, match="questions:2"):
        read_asked(tmp_path / "questions")


def test_conditions_as_a_person_types_them() -> None:
    assert parse_conditions(["file=a.md", "year>=2020", "year<=2022", "kind=a|b"]) == {
        "file": ["a.md"],
        "year": Between(2020.0, 2022.0),
        "kind": ["a", "b"],
    }
    assert parse_conditions(["n=3", "t=true"]) == {"n": ["3", 3.0], "t": ["true", True]}
    for wrong in (["year"], ["=3"], ["a=1", "a=2"], ["a>=1", "a>=2"], ["a=1", "a>=2"]):
        with pytest.raises(UserError):
            parse_conditions(wrong)


def test_the_floor_lies_between_what_is_answered_and_what_is_not() -> None:
    assert 0.3 < best_floor([0.5, 0.6, 0.9], [0.1, 0.2, 0.3]) <= 0.5
    assert best_floor([0.9], [0.0]) == 0.35, "the usual one where many are as good"


def test_a_small_index_has_no_floor_of_its_own_and_an_app_can_say_another(workspace: Workspace) -> None:
    from yunque.apps.retrieval.extractive import FLOOR, Relevance

    index = Index.open(workspace, "small")
    assert index.floor is None and calibrated_floor(index) is None
    assert Finder(index, Synonyms()).floor == FLOOR
    index.floor = 0.5
    assert Finder(index, Synonyms()).floor == 0.5
    assert Finder(index, Synonyms(), Relevance(floor=0.2)).floor == 0.2


def test_fusion_by_scores_weighs_each_over_its_highest() -> None:
    fused = score_fusion({"a": 4.0, "b": 2.0}, {"b": 0.8, "c": 0.4}, 0.25)
    assert fused == pytest.approx({"a": 0.75, "b": 0.375 + 0.25, "c": 0.125})
    assert score_fusion({}, {}, 0.5) == {}
