import numpy as np

from yunque.apps.retrieval.features import ANSWER, SENTENCE
from yunque.apps.retrieval.ranking import Ranking


def test_the_shipped_weights_say_what_anyone_would_expect() -> None:
    ranking = Ranking.shipped()
    sentence = dict(zip(SENTENCE, ranking.sentence, strict=True))
    answer = dict(zip(ANSWER, ranking.answer, strict=True))
    assert all(sentence[name] > 0 for name in ("covered", "nearby", "heading", "specific", "fitting"))
    assert sentence["misfits"] < 0
    assert all(answer[name] > 0 for name in ("score", "margin", "nearby"))
    assert answer["lacking"] < 0 and answer["misfits"] < 0


def test_a_score_and_a_probability_are_those_of_the_weights() -> None:
    sentence, answer = np.zeros(len(SENTENCE), np.float32), np.zeros(len(ANSWER), np.float32)
    sentence[1], answer[0] = 2.0, 1.0
    ranking = Ranking(sentence, answer, -1.0)
    assert ranking.scores(np.eye(len(SENTENCE), dtype=np.float32)[:3]).tolist() == [0.0, 2.0, 0.0]
    features = np.zeros(len(ANSWER), np.float32)
    assert ranking.probability(features) < 0.3
    features[0] = 1.0
    assert ranking.probability(features) == 0.5
