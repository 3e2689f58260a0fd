"""An information desk: questions about twelve places of an invented town, answers good and bad, and who judges them.

The judge stands for what people really want. It is never trained on, and no model sees it.
"""

import random
import re
from dataclasses import dataclass

# English and Spanish name, hour of opening, price, street.
_PLACES = (
    ("the museum", "el museo", 9, 6, "Lima"),
    ("the library", "la biblioteca", 8, 0, "Quito"),
    ("the castle", "el castillo", 10, 7, "Toledo"),
    ("the pool", "la piscina", 7, 4, "Cuba"),
    ("the theatre", "el teatro", 6, 15, "Goya"),
    ("the cinema", "el cine", 5, 8, "Lorca"),
    ("the market", "el mercado", 4, 0, "Sol"),
    ("the zoo", "el zoo", 11, 12, "Río"),
    ("the garden", "el jardín", 3, 2, "Luna"),
    ("the tower", "la torre", 12, 5, "Mar"),
    ("the gym", "el gimnasio", 2, 9, "Paz"),
    ("the aquarium", "el acuario", 1, 14, "Norte"),
)
_QUESTIONS = {
    ("en", "hour"): ("When does {} open?", "At what time does {} open?", "What is the opening hour of {}?"),
    ("en", "price"): ("How much is {}?", "What is the price of {}?", "What does {} cost?"),
    ("en", "street"): ("Where is {}?", "In which street is {}?", "How do I find {}?"),
    ("es", "hour"): ("¿Cuándo abre {}?", "¿A qué hora abre {}?", "¿Desde qué hora está abierto {}?"),
    ("es", "price"): ("¿Cuánto cuesta {}?", "¿Qué precio tiene {}?", "¿Qué vale entrar en {}?"),
    ("es", "street"): ("¿Dónde está {}?", "¿En qué calle está {}?", "¿Cómo encuentro {}?"),
}
_FACTS = {
    ("en", "hour"): "It opens at {}.",
    ("en", "price"): "It costs {} euros.",
    ("en", "street"): "It is in {} Street.",
    ("es", "hour"): "Abre a las {}.",
    ("es", "price"): "Cuesta {} euros.",
    ("es", "street"): "Está en la calle {}.",
}
_COURTESY = {"en": "With pleasure!", "es": "¡Con mucho gusto!"}
_WAFFLE = {
    "en": (
        "Many people ask this.",
        "It is a good question.",
        "The town is very old.",
        "There is a lot to see here.",
        "The weather is nice today.",
    ),
    "es": (
        "Mucha gente lo pregunta.",
        "Es una buena pregunta.",
        "La ciudad es muy antigua.",
        "Aquí hay mucho que ver.",
        "Hoy hace buen tiempo.",
    ),
}
# How often the model that feedback has yet to mend answers with the right fact, and with courtesy.
_RIGHT, _POLITE = 0.6, 0.4
# People who compare two answers do not always agree.
_MISTAKEN = 0.05


@dataclass(frozen=True)
class Question:
    """What is asked, and the sentence that answers it."""

    text: str
    language: str
    kind: str
    fact: str


def _fact(language: str, kind: str, place: tuple[str, str, int, int, str]) -> str:
    value = {"hour": place[2], "price": place[3], "street": place[4]}[kind]
    return _FACTS[language, kind].format(value)


QUESTIONS = tuple(
    Question(wording.format(place[language == "es"]), language, kind, _fact(language, kind, place))
    for place in _PLACES
    for (language, kind), wordings in _QUESTIONS.items()
    for wording in wordings
)
_BY_TEXT = {question.text: question for question in QUESTIONS}


def written(question: Question, generator: random.Random) -> str:
    """An answer such as the desk's model gives at first: often wrong, curt or rambling."""
    fact = question.fact
    if generator.random() > _RIGHT:
        fact = _fact(question.language, question.kind, generator.choice(_PLACES))
    parts = [_COURTESY[question.language]] if generator.random() < _POLITE else []
    waffle = generator.choices(_WAFFLE[question.language], k=generator.choice((0, 0, 1, 2, 3)))
    return " ".join([*parts, fact, *waffle])


def judge(prompt: str, answer: str) -> float:
    """What people want, from about -1 to 1.5: the right fact and no other (1), courtesy once (0.5), no waffle
    (-0.25 for each sentence too many)."""
    question = _BY_TEXT[prompt]
    sentences = [part for part in re.findall(r"[^.!?]+[.!?]*", answer) if part.strip()]
    said = {part.strip() for part in sentences}
    courteous = _COURTESY[question.language] in said
    right = question.fact in said
    too_many = max(0, len(sentences) - int(courteous) - 1)
    return float(right) + 0.5 * courteous - 0.25 * too_many


def preference(question: Question, generator: random.Random) -> tuple[str, str] | None:
    """Two answers, the preferred one first, as a person who is sometimes mistaken sees it; None where they tie."""
    first, second = written(question, generator), written(question, generator)
    scores = judge(question.text, first), judge(question.text, second)
    if scores[0] == scores[1]:
        return None
    if (scores[0] < scores[1]) != (generator.random() < _MISTAKEN):
        first, second = second, first
    return first, second


def longer(prompt: str, answer: str) -> float:
    """A reward that is easy to game: a tenth for each word, whatever it says."""
    del prompt
    return len(answer.split()) / 10
