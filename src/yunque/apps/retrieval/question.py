"""A question taken apart: its telling words, their weights, what else they may be called, and what is asked for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from yunque.apps.retrieval.everyday import EVERYDAY_EN, EVERYDAY_ES, PLACES
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.vocabulary import Vocabulary
from yunque.apps.retrieval.words import (
    LANGUAGES,
    LIGHT,
    LIGHT_NOUNS,
    NUMERALS,
    STOP,
    Language,
    stem,
    words_of,
)

LIGHT_WEIGHT = 0.25
EVERYDAY_WEIGHT = 0.12
GROUPED_EVERYDAY_WEIGHT = 0.6
"""An everyday word that the app lists among its synonyms is a word of its trade after all."""
ASKED_WEIGHT = 1.5
UNKNOWN_PLACE_WEIGHT = 0.35
VERB_WEIGHT = 0.5
"""An unknown word that looks like a verb or an adverb matters less than one that may name a thing."""
NUMBER_WEIGHT = 0.3
"""A number in a question is mostly the asker's own case ("my bag weighs 25 kg"), seldom in the document."""

_MONEY = (
    r"(?:€|\beur\b|euros?\b|\bgratis\b|gratuit|sin coste|sin cargo|sin cobrar|\bfree\b|"
    r"no cost|at no (?:extra )?c|no charge|%)"
)
_TIME = (
    r"(?:\b\d{1,2}[:.]\d{2}\b|\b(?:semana|week|dia|day|mes|month) \d|"
    r"(?:\d+|un|una|dos|tres|one|two|three) (?:segundos?|minutos?|"
    r"horas?|dias?|semanas?|mes(?:es)?|anos?|"
    r"seconds?|minutes?|hours?|days?|weeks?|months?|years?|working|business)|\b24/7\b|"
    r"en el acto|on the spot|at once|"
    r"\b(?:en|in|since|desde|hacia) (?:1[5-9]|20)\d\d\b|\b(?:1[5-9]|20)\d\d-\d\d|"
    r"\b(?:primavera|verano|otono|invierno|spring|summer|autumn|winter)\b|"
    r"\d (?:de )?(?:enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|"
    r"january|february|march|april|may|june|july|august|september|october|november|december)\b|"
    r"from .* to \d|\bde \d+ a \d+\b)"
)
# What an answer looks like, by what the question asks for (matched on folded text).
ANSWER_SHAPES: dict[str, re.Pattern[str]] = {
    "money": re.compile(_MONEY),
    "time": re.compile(_TIME),
    "weight": re.compile(r"\d\s?(?:kg|kilos?|kilogram|lb|g)\b"),
    "size": re.compile(r"\d\s?(?:cm|x|m\b|por \d|by \d)"),
    "age": re.compile(
        r"\d+ (?:y \d+ |to \d+ |a \d+ |and \d+ )?(?:anos|years?|mes|month|semana|week|dias|days)|"
        r"\bunder \d|\bage"
    ),
    "count": re.compile(
        r"\d|\b(?:un|una|dos|tres|cuatro|cinco|one|two|three|four|five|single|ningun|ninguna|"
        r"no limit|sin limite)\b"
    ),
    "telephone": re.compile(r"\+\d"),
    "address": re.compile(r"@|\.example|\bcalle\b"),
    "place": re.compile(
        r"mostrador|aeropuerto|terminal|puerta|web|app|oficina|\ben (?:la|el|los|las) |counter|"
        r"airport|gate|website|office|desk|"
        r"\b(?:at|in|under|on) the |@|\.example"
    ),
    "length": re.compile(_TIME + r"|\d\s?(?:cm|x|m\b|por \d|by \d)"),
    "reason": re.compile(
        r"\bporque\b|\bdebido|\bpara (?:que|evitar)|\bpor (?:el|la|los|las|motivos|razones|seguridad)\b|"
        r"because|due to|\bso that\b|reasons|in order to"
    ),
    "permission": re.compile(
        r"\bpued|\bpodra|permit|admit|acept|prohib|autoriz|viaja|\bno se\b|\bdebe|\bhay\b|"
        r"no hace falta|\bse llev|gratis|"
        r"\bmay\b|\bcan\b|cannot|allow|accept|forbid|permitted|\bmust|\bnot\b|travels?\b|"
        r"\bneeds?\b|necesita|free"
    ),
}
_ASKS: dict[str, re.Pattern[str]] = {
    "money": re.compile(
        r"cuant[oa]s? (?:\w+ ){0,3}?(?:cuesta|cuestan|vale|valen|cobra|pag|sale|costar|supone|"
        r"dinero|euros?|es el (?:precio|coste|recargo|suplemento)|seria|me dan|dais|dan)|"
        r"que (?:precio|coste|tarifa|cuesta|vale)|"
        r"\bprecio|\bcoste\b|\btarifa de|por cuanto|cuanto (?:es|hay que pagar)\b|a cuanto|"
        r"recargo|que importe|"
        r"how much(?! time| weight| luggage| baggage| water| notice| space| liquid| perfume|"
        r" cash)|\bprice|\bcost\b|\bcosts\b|\bfee\b|\bfees\b|what do you charge|what .*\bcharge|"
        r"\b(?:a|any|extra) (?:fee|charge|cost)\b|percentage|porcentaje|que cantidad|what amount"
    ),
    "time": re.compile(
        r"(?:^|\b(?:y|de|desde|hasta|para|pero) )cuando\b|a que hora|que hora|"
        r"cuant[oa]s? (?:tiempo|dias|horas|minutos|semanas|meses|"
        r"antelacion)|\bplazo\b|hasta cuando|que horario|horario|tarda|antelacion|"
        r"(?:^|\b(?:and|by|since|until|from|so|but|exactly) )when\b|what time|"
        r"how (?:soon|early|late|quickly|fast|many (?:days|"
        r"hours|minutes|weeks|months))|deadline|"
        r"how (?:far|much) (?:in advance|time|notice|ahead)|\blatest\b|\bearliest\b|lo mas tarde|"
        r"ultimo momento|ultima hora|cuanto rato|cuanto antes|hasta que|how far ahead|by when|"
        r"opening hours|how much time"
    ),
    "weight": re.compile(
        r"cuant[oa]s? (?:\w+ ){0,3}?(?:pes|kilo|kg)|limite de (?:peso|kilos)|cual es el peso|"
        r"que peso|peso (?:maximo|limite|permitido)|"
        r"maximo peso|how heavy|how many (?:kilo|kg)|how much (?:\w+ ){0,4}weigh|weight limit|"
        r"max\w* weight|what weight"
    ),
    "size": re.compile(
        r"medida|tamano|dimension|que tan grande|cuant\w* (?:\w+ ){0,3}?(?:mide|medir|"
        r"centimetros)|how (?:big|large|tall|wide)|\bsize\b|measure|dimension"
    ),
    "age": re.compile(
        r"que edad|edad (?:minima|maxima)|cuantos anos|a partir de que edad|con que anos|how old|"
        r"what age|minimum age|from what age|youngest"
    ),
    "count": re.compile(
        r"cuant[oa]s (?!horas|dias|semanas|minutos|meses|anos|kilos|kg|cuesta|tiempo)|"
        r"how many(?! days| hours| minutes| weeks| months| kilo| kg)"
    ),
    "telephone": re.compile(
        r"(?:que|cual|numero|dais|dame|el) (?:\w+ ){0,3}telefono|telefono de|(?:phone|"
        r"telephone) (?:number|for)|what number|que numero|a que numero"
    ),
    "address": re.compile(r"correo|e ?mail|direccion|address"),
    "place": re.compile(
        r"\bdonde\b|\badonde\b|en que (?:sitio|lugar|terminal|mostrador|puerta)|\bwhere\b|"
        r"which (?:terminal|desk|counter|gate)"
    ),
    "length": re.compile(r"how long|que largo"),
    "reason": re.compile(r"^\W*(?:y )?por que\b|\bwhy\b"),
    "permission": re.compile(
        r"\bpued[oe]n?\b|\bpodemos\b|\bpodria|se puede|\bdejan\b|me dejais|\bpermit|admit|\bacept|"
        r"esta (?:permitido|prohibido)|"
        r"^(?:\W*)(?:can|may|could|am i|are|is it|is there|do you|will you|do i|must|should)\b|"
        r"allowed|tengo que|hace falta|hay que|necesit|es obligatori"
    ),
}

_ASKING_PHRASE = re.compile(
    r"(?:how|what time|with me|at most|at least|each|hasta cuando|a que|con cuant|cuant|"
    r"como m|cada|al menos|no se|a bordo|on board)\b"
)
# How people type when they are in a hurry.
_SHORTHAND = {
    "q": "que", "k": "que", "ke": "que", "xq": "porque", "pq": "porque", "tb": "tambien", "x": "por",
    "kiero": "quiero", "kuanto": "cuanto", "cto": "cuanto", "u": "you", "ur": "your", "r": "are",
    "pls": "please", "hrs": "hours", "mins": "minutes", "min": "minutes", "pax": "passenger",
}  # fmt: skip
_LOOKS_LIKE_VERB = {
    "es": re.compile(
        r"(?:arl[oae]s?|erl[oae]s?|irl[oae]s?|arme|erme|irme|arse|erse|irse|arte|ando|iendo|amos|"
        r"emos|imos|aria|eria|iria|aran|"
        r"eran|iran|are|asteis|isteis|ais|eis|mente|aron|ieron|aba|aban|abamos|ar|er|ir)$"
    ),
    "en": re.compile(r"(?:ly|ing|ed|ish)$"),
}

# What is asked for stands after a question word or after the verb of being there ("are there showers").
_ASKED_THING = re.compile(
    r"\b(?:cuant[oa]s?|que|cuales?|how many|which|what|what s|whats|is there|are there|hay|teneis|do you have)\s+"
    r"(?:(?:an?|any|the|un|una|el|la|los|las|algun|alguna)\s+)?((?:\w+\s*){1,2})"
)
_MEASURES = (
    "kilos", "kilo", "kg", "cm", "euros", "eur", "cantidad", "tiempo", "weight", "size", "money", "amount",
    "number", "numero",
)  # fmt: skip
"""What these ask for has a shape, which says more than the word."""

_BETWEEN_MARKS = re.compile(r"¿([^¿?]+)\??[^¿]*$")
_LAST_SENTENCE = re.compile(r"[.!;\n]\s+([^.!;\n?]+)\?\s*$")
_LAST_CLAUSE = re.compile(
    r",\s+((?:and |y )?(?:can|may|could|do|does|is|are|am|will|would|should|must|how|what|when|where|who|which|"
    r"puedo|puede|podria|se puede|cuanto|cuanta|cuantos|cuando|cuánto|cuándo|donde|dónde|que|qué|"
    r"q|como|cómo|cual|"
    r"hay|tengo que)\b[^,]*)$",
    re.IGNORECASE,
)

_QUANTITY = re.compile(
    r"(\d+(?:[.,]\d+)?)\s?(kg|kilos?|cm|centimetros|anos|years?|year|meses|months?|semanas|"
    r"weeks?|dias|days?|horas|hours?|"
    r"minutos|minutes?|km|kilometros|kilometres|ml|wh|eur|euros|€|litros|litres|l)?"
)
_UNITS = {
    "kilo": "kg", "kilos": "kg", "centimetros": "cm", "year": "anos", "years": "anos", "month": "meses",
    "months": "meses", "week": "semanas", "weeks": "semanas", "day": "dias", "days": "dias",
    "hour": "horas", "hours": "horas", "minute": "minutos", "minutes": "minutos", "kilometros": "km",
    "kilometres": "km", "euros": "eur", "€": "eur", "litros": "l", "litres": "l",
}  # fmt: skip

_EVERYDAY = {
    language: frozenset(stem(word, language) for word in text.split())
    for language, text in (("es", EVERYDAY_ES), ("en", EVERYDAY_EN))
}
_PLACES = frozenset(PLACES.split())


def quantities(folded: str) -> list[tuple[float, str]]:
    """The numbers of a folded text with their units, under one name for each unit."""
    found = []
    for number, unit in _QUANTITY.findall(folded):
        grouped = re.fullmatch(r"\d{1,3}[.,]\d{3}", number)
        value = float(number.replace(",", "").replace(".", "") if grouped else number.replace(",", "."))
        found.append((value, _UNITS.get(unit, unit)))
    return found


def asking_part(text: str) -> str:
    """The part of a longer text that asks ("I am Ana, ... Can I pay later?"), or "" when it cannot be told."""
    whole = text.strip()
    for pattern in (_BETWEEN_MARKS, _LAST_SENTENCE, _LAST_CLAUSE):
        if (found := pattern.search(whole)) and len(found[1].strip()) < len(whole) - 3:
            return found[1].strip()
    return ""


@dataclass(frozen=True)
class Term:
    """A word or phrase of a question.

    `stems` are the ways it may stand in a text, by language; `groups` its synonyms' groups; `parts` the stems of a
    phrase's words. `telling` is False for everyday words, places and numbers, which alone make no topic; `unknown`
    says that neither the corpus nor the synonyms have it; `asking` is False for what was told before the asking
    clause; `asked` is True for the thing asked for ("how many megabytes").
    """

    word: str
    weight: float
    stems: Mapping[Language, frozenset[str]]
    groups: frozenset[int]
    telling: bool
    place: bool = False
    parts: frozenset[str] = frozenset()
    quantity: tuple[float, str] | None = None
    unknown: bool = False
    asking: bool = True
    asked: bool = False


@dataclass(frozen=True)
class Question:
    """`asks` names the shapes of answer (keys of ANSWER_SHAPES) that the question wants."""

    text: str
    language: Language
    terms: tuple[Term, ...]
    asks: frozenset[str]
    expanded: Mapping[Language, Mapping[str, float]]

    @property
    def weight(self) -> float:
        """The weights of all terms together."""
        return sum(term.weight for term in self.terms)


def take_apart(text: str, language: Language, keywords: Vocabulary, synonyms: Synonyms) -> Question:
    """Find the terms of a question and weigh them by how rare they are in the corpus."""
    words = [_SHORTHAND.get(word, word) for word in words_of(text)]
    folded = " ".join(words)
    stems = [stem(word, language) for word in words]
    terms: dict[str, Term] = {}
    position = 0
    while position < len(words):
        found = synonyms.groups_at(stems, position, language)
        width = max((length for _, length in found), default=1)
        groups = frozenset(number for number, length in found if length == width)
        piece = words[position : position + width]
        following = words[position + width] if position + width < len(words) else ""
        position += width
        word = " ".join(piece)
        if word in terms:
            continue
        if width > 1:
            terms[word] = _phrase(word, groups, language, keywords, synonyms)
        elif word[0].isdigit() or word in NUMERALS:
            terms[word] = _number(word, following, keywords)
        elif word not in STOP[language] and len(word) > 1:
            terms[word] = _word(word, groups, language, keywords, synonyms)
    asks = _asked_shapes(asking_part(text)) or _asked_shapes(text)
    if asked := _ASKED_THING.search(folded):
        # "How many megabytes", "hay duchas": what is asked for must be there, whatever else is.
        for word in asked[1].split():
            if (
                word in terms
                and word not in LIGHT[language]
                and word not in _MEASURES
                and not terms[word].quantity
            ):
                weight = ASKED_WEIGHT * max(terms[word].weight, 2.0)
                terms[word] = replace(terms[word], weight=weight, asked=True, telling=True)
                break
    _give_a_topic(terms, language, keywords)
    found_terms = _without_the_story(text, terms)
    expanded = {spoken: _expanded(found_terms, spoken, synonyms) for spoken in LANGUAGES}
    return Question(text, language, found_terms, asks, expanded)


def _asked_shapes(text: str) -> frozenset[str]:
    """The shapes of answer that a text asks for."""
    folded = " ".join(_SHORTHAND.get(word, word) for word in words_of(text))
    return frozenset(kind for kind, pattern in _ASKS.items() if pattern.search(folded))


def _give_a_topic(terms: dict[str, Term], language: Language, keywords: Vocabulary) -> None:
    """Let everyday words tell, where a question has no others and the corpus seldom has them.

    "Trip" tells nothing among an airline's rules; in the handbook of an office it is what is asked about. Where a
    place is named that the corpus does not know, nothing else is a topic.
    """
    if any(term.telling or (term.place and term.unknown) for term in terms.values()):
        return
    for word, term in terms.items():
        known = [stem for stem in term.stems[language] if stem in keywords]
        says = word not in LIGHT[language] or word in LIGHT_NOUNS
        if says and known and not term.place and not term.quantity and keywords.is_rare(*known):
            terms[word] = replace(term, telling=True, weight=keywords.idf(*known))


def _without_the_story(text: str, terms: Mapping[str, Term]) -> tuple[Term, ...]:
    """The terms, those that stand only before the asking clause marked, when that clause has a topic of its own."""
    inside = {_SHORTHAND.get(word, word) for word in words_of(asking_part(text))}
    asking = {word: not inside.isdisjoint(word.split()) for word in terms}
    if not any(term.telling and asking[word] for word, term in terms.items()):
        return tuple(terms.values())
    return tuple(replace(term, asking=asking[word]) for word, term in terms.items())


def _number(word: str, following: str, keywords: Vocabulary) -> Term:
    digits = NUMERALS.get(word, word)
    found = quantities(f"{digits} {following}") or quantities(digits)
    stems = dict.fromkeys(LANGUAGES, frozenset([word, digits]))
    weight = NUMBER_WEIGHT * keywords.idf(word, digits)
    return Term(word, weight, stems, frozenset(), False, quantity=found[0] if found else None)


def _phrase(
    word: str, groups: frozenset[int], language: Language, keywords: Vocabulary, synonyms: Synonyms
) -> Term:
    """Several words that stand for one group; best of all where they all stand themselves."""
    asks_how_much = _ASKING_PHRASE.match(word) is not None
    weight = _group_idf(groups, keywords, synonyms) * (LIGHT_WEIGHT if asks_how_much else 1.0)
    parts = frozenset(stem(part, language) for part in word.split() if part not in STOP[language])
    stems: dict[Language, frozenset[str]] = dict.fromkeys(LANGUAGES, frozenset())
    return Term(word, weight, stems, groups, not asks_how_much, parts=parts)


def _group_idf(groups: frozenset[int], keywords: Vocabulary, synonyms: Synonyms) -> float:
    """The mean rarity of the groups' words that the corpus has."""
    named = {
        found for spoken in LANGUAGES for found in synonyms.expansions(groups, spoken) if found in keywords
    }
    return sum(keywords.idf(found) for found in named) / len(named) if named else keywords.idf()


def _word(
    word: str, groups: frozenset[int], language: Language, keywords: Vocabulary, synonyms: Synonyms
) -> Term:
    """One word: itself, its groups, and what it may have been meant to be when nobody knows it."""
    stems = {spoken: {stem(word, spoken)} for spoken in LANGUAGES}
    everyday = word in LIGHT[language] or stem(word, language) in _EVERYDAY[language]
    place = word in _PLACES
    light = word in LIGHT[language]
    if not everyday and not place and not groups and stem(word, language) not in keywords:
        extra = frozenset(synonyms.words[language]) | STOP[language] | LIGHT[language]
        for guess in keywords.nearest_words(word, extra):
            meant = stem(guess, language)
            stems[language].add(meant)
            groups |= synonyms.groups_of([meant], language)
            everyday = everyday or meant in _EVERYDAY[language] or guess in STOP[language] | LIGHT[language]
    present = [found for spoken in LANGUAGES for found in stems[spoken] if found in keywords]
    idf = keywords.idf(*present) if present else _group_idf(groups, keywords, synonyms)
    if everyday and groups and not light:
        idf *= GROUPED_EVERYDAY_WEIGHT
        everyday = False
    elif everyday:
        idf *= LIGHT_WEIGHT if present or groups else EVERYDAY_WEIGHT
    elif place:
        idf *= 0.8 if present else UNKNOWN_PLACE_WEIGHT
    elif not present and not groups and _LOOKS_LIKE_VERB[language].search(word):
        idf *= VERB_WEIGHT
    frozen = {spoken: frozenset(found) for spoken, found in stems.items()}
    unknown = not present and not groups
    return Term(word, idf, frozen, groups, not (everyday or place), place, unknown=unknown)


def _expanded(terms: tuple[Term, ...], language: Language, synonyms: Synonyms) -> dict[str, float]:
    """Stems to look for in passages of a language, synonyms at half weight, everyday words at a quarter."""
    wanted: dict[str, float] = {}
    for term in terms:
        relative = 1.0 if term.telling else LIGHT_WEIGHT
        for found in synonyms.expansions(term.groups, language):
            wanted[found] = max(wanted.get(found, 0.0), 0.5 * relative)
        for found in term.parts:
            wanted[found] = max(wanted.get(found, 0.0), 0.5 * relative)
        for found in term.stems[language]:
            wanted[found] = max(wanted.get(found, 0.0), relative)
    return wanted
