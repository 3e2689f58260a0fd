"""Words as retrieval sees them: folded, stemmed lightly, and weighed by how much they say about the topic.

Accents are folded here (people type "facturacion"), never in the text that is shown or quoted.
"""

import codecs
import re
import unicodedata
from functools import lru_cache
from typing import Any, Literal

from yunque.data.language import detect_language

Language = Literal["es", "en"]
LANGUAGES: tuple[Language, ...] = ("es", "en")

_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_WORD = re.compile(r"[^\W_]+(?:[.,:][0-9]+)*")


class _WithoutMarks(dict[int, int | None]):
    """For str.translate: what is set on or under another letter is left out."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.combining(chr(code)) else code
        return self[code]


_WITHOUT_MARKS = _WithoutMarks()


def _fold_any(text: str) -> str:
    return unicodedata.normalize("NFKD", text).translate(_WITHOUT_MARKS).casefold()


def _western() -> tuple[Any, str, str]:
    """For `codecs.charmap_encode` and `charmap_decode`: the characters of a Western code page that fold to one
    character each, what these are folded, and what they are in words (a space is in none)."""
    page = [bytes([byte]).decode("cp1252", "replace") for byte in range(256)]
    folded = [_fold_any(character) for character in page]
    fits = [len(one) == 1 and character != "\ufffd" for character, one in zip(page, folded, strict=True)]
    # U+FFFE stands for a byte that is no character.
    written = "".join(one if fit else "\ufffe" for one, fit in zip(page, fits, strict=True))
    read = "".join(one if fit else "\ufffe" for one, fit in zip(folded, fits, strict=True))
    return codecs.charmap_build(written), read, "".join(c if _WORD.fullmatch(c) else " " for c in read)


# Nearly all texts are of these characters alone: they are folded and parted several times quicker so.
_WESTERN, _FOLDED, _SPACED = _western()
# Where a word may not end at the first mark: a possessive, a number.
_MARK_INSIDE = re.compile(r"['’.,:](?:(?<=['’])|[0-9¹²³])")


def fold(text: str) -> str:
    """Lower case without accents, full-width letters made plain."""
    if text.isascii():
        return text.lower()
    try:
        written, _ = codecs.charmap_encode(text, "strict", _WESTERN)
    except UnicodeEncodeError:
        return _fold_any(text)
    return codecs.charmap_decode(written, "strict", _FOLDED)[0]


def words_of(text: str) -> list[str]:
    """The folded words and numbers of a text, in order; "carry-on" is two words, "12,50" one."""
    if not _MARK_INSIDE.search(text):
        try:
            written, _ = codecs.charmap_encode(text, "strict", _WESTERN)
            return codecs.charmap_decode(written, "strict", _SPACED)[0].split()
        except UnicodeEncodeError:
            pass
    return _WORD.findall(_POSSESSIVE.sub("", fold(text)))


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP: dict[Language, frozenset[str]] = {
    "es": _set(
        "a al algo alguien algun alguna algunas alguno algunos ante antes aquel aquella aquello "
        "asi aun aunque cada casi "
        "como con contra cual cuales cualquier cuando cuanta cuantas cuanto cuantos de del desde "
        "donde dos e el ella "
        "ellas ellos en entonces entre era eran es esa esas ese eso esos esta estaba estado "
        "estamos estan estar estas "
        "este esto estos estoy fue fueron ha habia hace hacer hacen hacemos hago haga han has "
        "hasta hay haya he hemos "
        "incluso ir voy vas va vamos van vaya iba fuera la las le les lo los mas me mi mis mio "
        "mia mientras mucha muchas "
        "mucho muchos muy nada ni no nos nosotros nuestra nuestro nuestras nuestros o os otra "
        "otras otro otros para pero poco por "
        "porque pues que quien quienes se sea sean segun ser si sido sin sino sobre sois "
        "solamente somos son soy su sus "
        "suya suyo tal tambien tampoco tan tanta tanto te tengo tenemos tener tenga tengan tiene "
        "tienen tenia ti toda "
        "todas todo todos tras tu tus tuya tuyo u un una unas uno unos usted ustedes vosotros "
        "vuestra vuestro y ya yo "
        "puedo puede pueden podemos podria podrian podeis poder pueda puedan podre quiero quiere "
        "queremos quisiera querria "
        "querer debo debe deben debemos deberia deber necesito necesita necesitamos necesitan "
        "hola gracias favor buenas "
        "buenos oye esto aqui alli ahi luego cosa cosas sirve pasa pasaria ocurre sucede saber "
        "sabe sabeis decir "
        "dice dicen digame dime hacia durante mediante entonces ademas tienes teneis quieres "
        "puedes podrias podras debes"
    ),
    "en": _set(
        "a about above after again all also am an and any anybody anyone anything are aren as at "
        "be been before being both "
        "but by can cannot could couldn d did didn do does doesn doing don down during each "
        "either else ever every few "
        "for from get gets getting got had has have haven having he hello her here hers hi him "
        "his how i if im in into is "
        "isn it its itself just ll m may maybe me might more most much must my myself need needs "
        "no nor not now of off on "
        "once one only onto or other others our ours out over own per please re s same shall she "
        "should shouldn so some "
        "somebody someone something still such t than thank thanks that the their theirs them "
        "themselves then there "
        "these they thing things this those though through to too under until up us ve very want "
        "wants was wasn we were "
        "what whatever when where whether which while who whom whose why will with within "
        "without won would wouldn yes "
        "yet you your yours okay ok tell know say says happens happen let like able many long"
    ),
}

LIGHT_NOUNS = _set(
    "vuelo vuelos viaje viajes avion aviones pasajero pasajera pasajeros cliente clientes aerolinea aerolineas "
    "compania empresa flight flights trip trips plane planes passenger passengers customer customers "
    "airline airlines company"
)
"""Those of the light words below that are a topic where the corpus is not about travelling."""

LIGHT: dict[Language, frozenset[str]] = {
    "es": _set(
        "llevar llevarme llevo lleva llevamos llevan lleve llevando llevarlo llevarla llevarse "
        "traer traigo trae traerme "
        "meter meto mete metan meterla meterlo subir subo suben subirme coger cojo dar dan doy "
        "dais darme dado dejar deja dejan "
        "dejais dejarme dejas permitir permite permiten permitis permitido permitida aceptar "
        "acepta aceptan aceptais admiten "
        "admite admitis autorizan pedir pido piden pide pedis hay haber existe existen posible "
        "posibilidad forma manera caso "
        "problema tipo aerolinea aerolineas yunque compania empresa vosotros necesario necesaria "
        "obligatorio obligatoria "
        "exactamente realmente normalmente normal mismo misma mismos ahora hoy ayer siempre "
        "nunca nuevo nueva bien "
        "mal mejor bastante demasiado suficiente unico unica solo sola maximo maxima minimo "
        "minima total menos mayor mia mio usar uso uso "
        "utilizar quedar queda quedarme poner pongo ponen pasar pasan pasarme salir volver "
        "vuelvo viajar viajo viaja viajamos "
        "viajan viaje viajando volar avion aviones vuelo vuelos volamos vuela pasajero pasajeros pasajera "
        "persona personas gente cliente clientes hora "
        "ofrece ofrecen ofreceis dan tocar toca haceis cuesta cuestan coste costar vale valen "
        "precio precios cobrar cobran "
        "cobra cobrais pagar pago pague pagan pagamos costaria supone sale euros euro dinero "
        "importe tarifa cuantia tiempo ocurrir suceder "
        "siguiente ultimo ultima momento parte lado vez veces dia dias mano trata alrededor derecho "
        "seria serian haria tendria tendre tendria tendriamos haya hice hizo hecho fui fuimos "
        "mira quiere preguntar pregunta duda "
        "esperar sigue sigo servir sirven siento acaba acabo acabar encuentro encontrar "
        "informacion informar informais"
    ),
    "en": _set(
        "take takes taking taken took bring brings bringing brought carry carries carrying put "
        "puts go goes going gone went come comes coming "
        "give gives given giving make makes made making allow allows allowed allowing permit "
        "permitted accept "
        "accepted accepts acceptable ask asks asking use uses used using possible way case kind "
        "sort type airline airlines yunque company "
        "actually really normally normal usually usual always never new well good best enough "
        "only single maximum max minimum "
        "total least less latest earliest travel travels travelling traveling trip fly flies "
        "flying flight flights plane planes airplane aircraft "
        "passenger passengers person people customer cost costs price prices pay pays paying "
        "paid charge charges charged fee fees "
        "money amount euros euro offer offers offered provide provides provided guys keep keeps "
        "have try trying "
        "stay time times day days hour next last bit lot part side end start free far soon early "
        "late big find out work works "
        "plan planning suppose supposed think wonder wondering question see look looking "
        "required require requires "
        "necessary mandatory turn mean means deal handle right happened entitled onboard board aboard "
        "board friend couple else instead together ready sure change option options information"
    ),
}

NUMERALS = {
    word: str(value)
    for names in (
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce",
        "zero one two three four five six seven eight nine ten eleven twelve",
    )
    for value, word in enumerate(names.split())
}

_ENCLITIC = re.compile(
    r"(?<=ar|er|ir)(?:me|te|se|lo|la|los|las|le|les|nos|os|melo|mela|selo|sela|telo|noslo)$|"
    r"(?<=ando|endo)(?:me|te|se|lo|la|los|las|le|les|nos)$"
)

# Longest first; an ending goes only when enough of the word is left to tell it from others.
_SPANISH_ENDINGS = _set(
    "amientos imientos amiento imiento aciones iciones uciones ciones acion icion cion "
    "siones sion adoras adores "
    "adora ador edora edores edor idora idor ables ibles able ible mente idades idad adas "
    "ados idas idos ada ado "
    "ida ido ando iendo yendo ar er ir aria aremos aran ara are arias arian eria eremos eran "
    "eras era ere erian "
    "iria iremos iran ira ire irian aste aron aba abas aban abamos amos emos imos iste ieron "
    "iera ieran ase "
    "isimos isimas isimo isima itos itas ito ita es as os an en a e o i"
)
_ENGLISH_ENDINGS = _set(
    "ations ation ements ement ments ment ances ance ences ence ables able ibles ible ings "
    "ing ingly edly ed ies "
    "es s ly er ers ors or"
)
_LONGEST_SPANISH, _LONGEST_ENGLISH = max(map(len, _SPANISH_ENDINGS)), max(map(len, _ENGLISH_ENDINGS))


@lru_cache(maxsize=65536)
def stem(word: str, language: str) -> str:
    """The part of a folded word that its other forms share; words of up to three letters and numbers stay."""
    if len(word) <= 3 or not word.isalpha():
        return word
    return _stem_english(word) if language == "en" else _stem_spanish(word)


def _stem_spanish(word: str) -> str:
    word = _ENCLITIC.sub("", word) if len(word) > 6 else word
    for length in range(min(_LONGEST_SPANISH, len(word)), 0, -1):
        if (ending := word[-length:]) not in _SPANISH_ENDINGS:
            continue
        # A long ending in e or i needs more of a word before it: "sala" and "salida" are not one word.
        least = (
            2 if len(ending) <= 2 and len(word) <= 4 else 4 if len(ending) > 2 and ending[0] in "ei" else 3
        )
        if len(word) - length >= least:
            word = word[:-length]
            break
    # A stressed vowel breaks in two in some forms (volar, vuelo; perder, pierdo), and spelling follows sound.
    if len(word) > 3:
        word = re.sub(r"(?<=[^gq])ue", "o", word)
        word = re.sub(r"ie(?=.)", "e", word)
    for written, sound in (("gu", "g"), ("qu", "c"), ("z", "c")):
        if word.endswith(written) and len(word) - len(written) >= 2:
            return word[: -len(written)] + sound
    return word


def _stem_english(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "ches", "shes", "xes")):
        word = word[:-2]
    else:
        for length in range(min(_LONGEST_ENGLISH, len(word)), 0, -1):
            if (ending := word[-length:]) not in _ENGLISH_ENDINGS:
                continue
            least = 3 if len(ending) > 1 else 2
            if ending == "s" and word.endswith(("ss", "us", "is")):
                continue
            if len(word) - length >= least:
                word = word[:-length]
                break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeious":
        word = word[:-1]
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word[-1] == "y" else word


def language_of(text: str, default: Language = "es") -> Language:
    """Spanish or English; `default` when a text says too little."""
    match detect_language(text):
        case "es":
            return "es"
        case "en":
            return "en"
    return default
