"""Groups of words that people use for one thing: maleta, equipaje, bulto; suitcase, luggage, bag."""

from collections.abc import Iterable, Mapping, Sequence

from yunque.apps.retrieval.words import LANGUAGES, Language, stem, words_of

Phrase = tuple[str, ...]


class Synonyms:
    """Finds the groups that a text mentions.

    A group maps a language to its words or short phrases; the languages of one group mean the same, which is what
    lets a question in one language find a document in the other.
    """

    def __init__(self, groups: Sequence[Mapping[Language, Sequence[str]]] = ()) -> None:
        self.members: list[dict[Language, list[Phrase]]] = []
        self._starts: dict[tuple[str, str], list[tuple[Phrase, int]]] = {}
        for number, group in enumerate(groups):
            stems = {
                language: [_stems(word, language) for word in words] for language, words in group.items()
            }
            self.members.append(stems)
            for language, phrases in stems.items():
                for phrase in phrases:
                    if phrase:
                        self._starts.setdefault((language, phrase[0]), []).append((phrase, number))
        self.words = {
            language: {
                word for group in groups for phrase in group.get(language, ()) for word in words_of(phrase)
            }
            for language in LANGUAGES
        }

    def groups_at(self, stems: Sequence[str], position: int, language: str) -> list[tuple[int, int]]:
        """The groups of the words that start at `position`: (group, how many words it took)."""
        found = []
        for phrase, number in self._starts.get((language, stems[position]), ()):
            if tuple(stems[position : position + len(phrase)]) == phrase:
                found.append((number, len(phrase)))
        return found

    def groups_of(self, stems: Sequence[str], language: str) -> set[int]:
        """Every group mentioned anywhere in a text."""
        return {
            number
            for position in range(len(stems))
            for number, _ in self.groups_at(stems, position, language)
        }

    def expansions(self, groups: Iterable[int], language: Language) -> set[str]:
        """The single-word stems of the groups in a language."""
        return {
            phrase[0]
            for number in groups
            for phrase in self.members[number].get(language, ())
            if len(phrase) == 1
        }


def _stems(text: str, language: str) -> Phrase:
    return tuple(stem(word, language) for word in words_of(text))
