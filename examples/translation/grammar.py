"""English sentences with their Spanish: a grammar small enough to write by hand, with agreement, tenses, negation,
relative clauses, the personal "a" and contractions ("al", "del"). Sentences have one to four clauses."""

import random
from dataclasses import dataclass

# English singular and plural, Spanish singular and plural, gender.
_PEOPLE = (
    ("boy", "boys", "niño", "niños", "m"),
    ("girl", "girls", "niña", "niñas", "f"),
    ("woman", "women", "mujer", "mujeres", "f"),
    ("man", "men", "hombre", "hombres", "m"),
    ("doctor", "doctors", "médico", "médicos", "m"),
    ("neighbour", "neighbours", "vecino", "vecinos", "m"),
    ("queen", "queens", "reina", "reinas", "f"),
    ("sailor", "sailors", "marinero", "marineros", "m"),
    ("singer", "singers", "cantante", "cantantes", "f"),
    ("gardener", "gardeners", "jardinero", "jardineros", "m"),
)
_THINGS = (
    ("book", "books", "libro", "libros", "m"),
    ("letter", "letters", "carta", "cartas", "f"),
    ("apple", "apples", "manzana", "manzanas", "f"),
    ("car", "cars", "coche", "coches", "m"),
    ("flower", "flowers", "flor", "flores", "f"),
    ("clock", "clocks", "reloj", "relojes", "m"),
    ("key", "keys", "llave", "llaves", "f"),
    ("lamp", "lamps", "lámpara", "lámparas", "f"),
    ("tree", "trees", "árbol", "árboles", "m"),
    ("picture", "pictures", "cuadro", "cuadros", "m"),
    ("bicycle", "bicycles", "bicicleta", "bicicletas", "f"),
    ("hat", "hats", "sombrero", "sombreros", "m"),
)
_PLACES = (
    ("garden", "jardín", "m"),
    ("kitchen", "cocina", "f"),
    ("river", "río", "m"),
    ("station", "estación", "f"),
    ("market", "mercado", "m"),
    ("church", "iglesia", "f"),
    ("village", "pueblo", "m"),
    ("school", "escuela", "f"),
)
# English, then Spanish: masculine, feminine, and both in the plural.
_ADJECTIVES = (
    ("old", "viejo", "vieja", "viejos", "viejas"),
    ("small", "pequeño", "pequeña", "pequeños", "pequeñas"),
    ("new", "nuevo", "nueva", "nuevos", "nuevas"),
    ("white", "blanco", "blanca", "blancos", "blancas"),
    ("red", "rojo", "roja", "rojos", "rojas"),
    ("green", "verde", "verde", "verdes", "verdes"),
    ("blue", "azul", "azul", "azules", "azules"),
    ("strange", "extraño", "extraña", "extraños", "extrañas"),
)
# English: base, third person, past. Spanish: present, past and future, each in the singular and the plural.
_VERBS = (
    ("see", "sees", "saw", "ve", "ven", "vio", "vieron", "verá", "verán"),
    ("buy", "buys", "bought", "compra", "compran", "compró", "compraron", "comprará", "comprarán"),
    (
        "find",
        "finds",
        "found",
        "encuentra",
        "encuentran",
        "encontró",
        "encontraron",
        "encontrará",
        "encontrarán",
    ),
    ("paint", "paints", "painted", "pinta", "pintan", "pintó", "pintaron", "pintará", "pintarán"),
    ("lose", "loses", "lost", "pierde", "pierden", "perdió", "perdieron", "perderá", "perderán"),
    ("draw", "draws", "drew", "dibuja", "dibujan", "dibujó", "dibujaron", "dibujará", "dibujarán"),
    (
        "need",
        "needs",
        "needed",
        "necesita",
        "necesitan",
        "necesitó",
        "necesitaron",
        "necesitará",
        "necesitarán",
    ),
    ("choose", "chooses", "chose", "elige", "eligen", "eligió", "eligieron", "elegirá", "elegirán"),
    (
        "describe",
        "describes",
        "described",
        "describe",
        "describen",
        "describió",
        "describieron",
        "describirá",
        "describirán",
    ),
    (
        "remember",
        "remembers",
        "remembered",
        "recuerda",
        "recuerdan",
        "recordó",
        "recordaron",
        "recordará",
        "recordarán",
    ),
)
_PREPOSITIONS = (("in", "en"), ("near", "cerca de"), ("behind", "detrás de"), ("in front of", "delante de"))
_TIMES = {
    "present": (("every day", "todos los días"), ("at night", "por la noche"), ("now", "ahora")),
    "past": (("yesterday", "ayer"), ("last year", "el año pasado"), ("on Monday", "el lunes")),
    "future": (("tomorrow", "mañana"), ("next week", "la semana que viene"), ("on Sunday", "el domingo")),
}
_JOINS = (("and", "y"), ("but", "pero"), ("because", "porque"), ("while", "mientras"))
_ARTICLES = {"m": ("el", "los"), "f": ("la", "las")}
_LIVES = ("lives", "live", "vive", "viven")
MOST_CLAUSES = 4


@dataclass(frozen=True)
class Pair:
    """A sentence in both languages."""

    english: str
    spanish: str

    @property
    def words(self) -> int:
        """How many words the English sentence has."""
        return len(self.english.split())


def _contracted(text: str) -> str:
    return f" {text} ".replace(" a el ", " al ").replace(" de el ", " del ").strip()


def _noun_phrase(
    nouns: tuple[tuple[str, str, str, str, str], ...], random_: random.Random
) -> tuple[str, str, bool]:
    """English, Spanish, and whether it is plural."""
    noun = random_.choice(nouns)
    plural = random_.random() < 0.35
    english, spanish, gender = noun[int(plural)], noun[2 + int(plural)], noun[4]
    if random_.random() < 0.4:
        adjective = random_.choice(_ADJECTIVES)
        english = f"{adjective[0]} {english}"
        spanish = f"{spanish} {adjective[1 + int(gender == 'f') + 2 * int(plural)]}"
    return f"the {english}", f"{_ARTICLES[gender][int(plural)]} {spanish}", plural


def _place(random_: random.Random) -> tuple[str, str]:
    (english, spanish), place = random_.choice(_PREPOSITIONS), random_.choice(_PLACES)
    return f"{english} the {place[0]}", _contracted(f"{spanish} {_ARTICLES[place[2]][0]} {place[1]}")


def _clause(random_: random.Random) -> tuple[str, str]:
    english, spanish, plural = _noun_phrase(_PEOPLE, random_)
    if random_.random() < 0.25:
        where = _place(random_)
        english += f" who {_LIVES[int(plural)]} {where[0]}"
        spanish += f" que {_LIVES[2 + int(plural)]} {where[1]}"
    verb, tense = random_.choice(_VERBS), random_.choice(("present", "past", "future"))
    negative = random_.random() < 0.25
    if tense == "present":
        does = "do not" if plural else "does not"
        said = f"{does} {verb[0]}" if negative else verb[0 if plural else 1]
    elif tense == "past":
        said = f"did not {verb[0]}" if negative else verb[2]
    else:
        said = f"will not {verb[0]}" if negative else f"will {verb[0]}"
    conjugated = verb[3 + 2 * ("present", "past", "future").index(tense) + int(plural)]
    person = random_.random() < 0.3
    thing, cosa, _ = _noun_phrase(_PEOPLE if person else _THINGS, random_)
    english += f" {said} {thing}"
    spanish += f" {'no ' if negative else ''}{conjugated} {_contracted('a ' + cosa) if person else cosa}"
    if random_.random() < 0.3:
        where = _place(random_)
        english, spanish = f"{english} {where[0]}", f"{spanish} {where[1]}"
    if random_.random() < 0.4:
        when = random_.choice(_TIMES[tense])
        english, spanish = f"{english} {when[0]}", f"{spanish} {when[1]}"
    return english, spanish


def sentence(random_: random.Random) -> Pair:
    """One sentence of one to four clauses, as many of each."""
    english, spanish = _clause(random_)
    for _ in range(random_.randrange(MOST_CLAUSES)):
        join, clause = random_.choice(_JOINS), _clause(random_)
        english, spanish = f"{english} {join[0]} {clause[0]}", f"{spanish} {join[1]} {clause[1]}"
    return Pair(f"{english[0].upper()}{english[1:]}.", f"{spanish[0].upper()}{spanish[1:]}.")


def sentences(count: int, seed: int) -> list[Pair]:
    """Different sentences, the same on every call."""
    random_ = random.Random(seed)
    found: dict[str, Pair] = {}
    while len(found) < count:
        pair = sentence(random_)
        found[pair.english] = pair
    return list(found.values())
