"""Fits the models that rank sentences and decide whether they answer; writes apps/retrieval/ranking.json.

    python tools/fit_ranking.py

First come figures cross-validated over questions (the models of each fold never saw its questions), then the fit on
all of them. The same questions and documents give the same file, but for the date.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from yunque.apps.kept import add_app, load_definition
from yunque.apps.retrieval.extractive import CANDIDATES, Finder
from yunque.apps.retrieval.features import ANSWER, SENTENCE, Features, Sentence
from yunque.apps.retrieval.index import Index, build_index
from yunque.apps.retrieval.measure import Measured, TestQuestion, ask, holds_the_fact, read_questions
from yunque.apps.retrieval.question import Question
from yunque.apps.retrieval.ranking import FILE, Ranking
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.data import prepare
from yunque.workspace import Workspace

SAMPLES = Path(str(files("yunque") / "samples"))
RANKER_L2, ANSWER_L2 = 0.01, 0.02
FOLDS = 10
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """A question with the sentences found for it, N x S features, and which of them hold the fact (N)."""

    test: TestQuestion
    question: Question
    sentences: list[Sentence]
    features: Array
    right: NDArray[np.bool_]


def fit_ranker(asked: Sequence[Asked]) -> Array:
    """Weights (S) with which a sentence that holds the fact comes first: softmax over a question's sentences.

    The pairwise logistic loss for one right and one wrong sentence, and one loss a question however many it has.
    """
    known = [one for one in asked if one.right.any()]
    spread = np.concatenate([one.features for one in known]).std(axis=0) + 1e-6

    def loss(weights: Array) -> tuple[float, Array]:
        total, slope = 0.0, np.zeros_like(weights)
        for one in known:
            scaled = one.features / spread
            scores = scaled @ weights
            chances = np.exp(scores - scores.max())
            among_right = chances * one.right
            total -= float(np.log(among_right.sum() / chances.sum()))
            slope += scaled.T @ (chances / chances.sum() - among_right / among_right.sum())
        value = total / len(known) + float(RANKER_L2 * weights @ weights)
        return value, slope / len(known) + 2 * RANKER_L2 * weights

    return np.asarray(minimize(loss, np.zeros(len(spread)), jac=True, method="L-BFGS-B").x / spread)


def fit_answer(features: Array, answerable: NDArray[np.bool_]) -> tuple[Array, float]:
    """Weights (A) and bias of a logistic regression, the two classes weighing the same."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = np.c_[(features - mean) / spread, np.ones(len(features))]
    sign = np.where(answerable, 1.0, -1.0)
    share = np.where(answerable, 0.5 / answerable.mean(), 0.5 / (~answerable).mean()) / len(features)
    penalty = np.r_[np.full(features.shape[1], ANSWER_L2), 0.0]

    def loss(weights: Array) -> tuple[float, Array]:
        margins = sign * (scaled @ weights)
        slope = -(scaled * (sign * share / (1 + np.exp(margins)))[:, None]).sum(axis=0)
        value = float((share * np.logaddexp(0, -margins)).sum() + penalty @ weights**2)
        return value, slope + 2 * penalty * weights

    found = minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B").x
    weights = found[:-1] / spread
    return weights, float(found[-1] - weights @ mean)


def fit(asked: Sequence[Asked], features: Features) -> Ranking:
    """Both models; the second is fitted on what the first puts on top."""
    ranker = fit_ranker(asked)
    tops, answerable = [], []
    for one in asked:
        if one.sentences:
            scores = one.features @ ranker
            ranked = [(float(scores[n]), one.sentences[n]) for n in np.argsort(-scores, kind="stable")]
            tops.append(features.answer(one.question, ranked).astype(np.float64))
            answerable.append(one.test.answerable)
    weights, bias = fit_answer(np.stack(tops), np.array(answerable))
    return Ranking(ranker.astype(np.float32), weights.astype(np.float32), bias)


def cross_validated(asked: Sequence[Asked], finder: Finder) -> dict[str, Measured]:
    """What folds of questions get from models that never saw them, over all and by the first part of the id."""
    folds = np.random.default_rng(0).permutation(len(asked)) % FOLDS
    measured: dict[str, Measured] = {"all": Measured(5)}
    for fold in range(FOLDS):
        seen = [one for one, other in zip(asked, folds, strict=True) if other != fold]
        finder.ranking = fit(seen, finder.features)
        for one in (one for one, other in zip(asked, folds, strict=True) if other == fold):
            for name in ("all", one.test.id.split("-")[0]):
                ask(finder, one.test, measured.setdefault(name, Measured(5)))
    return measured


def main() -> None:
    questions = read_questions(SAMPLES / "questions_dev.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(Path(folder) / "ws")
        documents = [SAMPLES / "airline" / language for language in ("es", "en")]
        prepare.add(workspace, "airline", documents, prepare.AddSettings(anonymize=False))
        build_index(workspace, "airline", ["airline"])
        add_app(workspace, SAMPLES / "apps" / "equipaje.yaml")
        knowledge = load_definition(workspace, "equipaje")[0].knowledge
        assert knowledge is not None
        blank = Ranking(np.zeros(len(SENTENCE), np.float32), np.zeros(len(ANSWER), np.float32), 0.0)
        index = Index.open(workspace, "airline")
        finder = Finder(index, Synonyms(knowledge.synonyms), knowledge.relevance, blank)
    asked = []
    for test in questions:
        question = finder.question(test.question)
        hits = finder.hits(question, CANDIDATES, question.language)
        found = finder.features.sentences(question, hits, question.language)
        right = np.array([holds_the_fact(test, one.passage, one.position) for one in found])
        rows = np.stack([one.features for one in found]) if found else np.zeros((0, len(SENTENCE)))
        asked.append(Asked(test, question, found, rows.astype(np.float64), right))
    for name, measured in cross_validated(asked, finder).items():
        print(name, json.dumps(measured.figures()))
    ranking = fit(asked, finder.features)
    values = {
        "fitted": datetime.now(UTC).date().isoformat(),
        "on": f"samples/questions_dev.jsonl, {len(questions)} questions",
        "sentence": dict(zip(SENTENCE, (round(float(w), 3) for w in ranking.sentence), strict=True)),
        "answer": dict(zip(ANSWER, (round(float(w), 3) for w in ranking.answer), strict=True)),
        "bias": round(ranking.bias, 3),
    }
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(values))


if __name__ == "__main__":
    main()
