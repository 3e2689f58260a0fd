"""The stems that texts and questions are looked up by."""

from yunque.apps.retrieval.words import STOP, stem, words_of


def stems_of(text: str, language: str) -> list[str]:
    """The stems of a text without its stop words."""
    stop = STOP["en"] if language == "en" else STOP["es"]
    return [stem(word, language) for word in words_of(text) if word not in stop]
