"""Which language a text is in: Spanish, English or undetermined.

Made for short questions as people type them: without accents, with typos, in lower case. A text is scored by
its function words and most common words, then by letters and endings that one of the two languages prefers.
Other languages are only told apart from these two, never named. Only the beginning of a long text is read.
"""

import re

_READ_CHARACTERS = 1500
_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['’][^\W\d_]+)?(?!\w)")
# Names made of parts, calls, paths and addresses: code, whose words are English in every language.
_CODE = re.compile(r"https?://\S+|\S+@\S+|\b\w+(?:[._/\\]\w+)+\b|\w+\([^)\s]*\)|`[^`]*`|[{}<>=]+")

_SPANISH_STRONG = (
    "el la los las un una unos unas del al y que qué cual cuál cuales cuanto cuánto cuanta cuántos "
    "cuantos cuántas cuantas como cómo cuando cuándo donde dónde quien quién quienes porque porqué por "
    "para con sin sobre entre hasta desde hacia segun según tras es son era eran fue fueron ser estar "
    "esta está estan están estoy estaba estamos soy eres somos hay haber hemos han habia había tengo "
    "tiene tienen tener tenemos puedo puede pueden podemos podria podría puedes poder quiero quiere "
    "quieren quisiera debo debe deben hacer hago hace hacen ir voy vas va vamos van mi mis tu tus su "
    "sus nuestro nuestra nuestros me te se nos le les lo yo tú él ella ellos ellas usted ustedes "
    "nosotros ese esa esos esas este estos estas esto eso aquel muy mas más menos tambien también pero "
    "si sí ya aun aún todavia todavía siempre nunca nada nadie algo alguien algun algún alguna otro "
    "otra otros otras todo toda todos todas mucho mucha muchos muchas poco cada mismo misma antes "
    "despues después ahora hoy ayer mañana aqui aquí alli allí asi así gracias hola favor bien ni cuyo "
    "mientras aunque dice dijo hacía sido cosa años año vez días día dias dia gente tiempo casa bueno "
    "buena necesito necesita saber llevar viajar vuelo vuelos equipaje maleta maletas billete billetes "
    "reserva pasaje perro gato niño niña hijo hija pagar cuesta precio dinero cambiar devolucion "
    "devolución reembolso puerta avion avión aeropuerto mascota mascotas embarazada peso medidas "
    "pelicula película mensaje correo telefono teléfono ayuda trabajo mundo vida ciudad pais país "
    "nombre ponga incluye permite permiten pasa pasar llego llegar perdido perdí perdi quedan queda "
    "cabina facturar tarifa gratis viajo bordo silla horario comida embarque pasaporte demasiado acerca "
    "luego entonces casi durante contra claro sé sabe saben creo parece"
)
_ENGLISH_STRONG = (
    "the an and or of to in on at for with without from into about over under between by is are was "
    "were be been being am do does did done doing don't doesn't didn't can can't cannot could would "
    "should shall will won't may might must have has had having i you he she it we they them him her "
    "his me my your our their its this that these those there here what which who whom whose when where "
    "why how if then than because while although though but not any some every each both either neither "
    "much many more most less few other another such only also too very just now still already ever "
    "never always often again please thanks thank hello want need know get got go going make made take "
    "bring travel flight flights baggage luggage bag bags ticket tickets booking fare refund change "
    "cancel dog cat pet pets child children kid pay cost price money airport plane seat gate weight "
    "size i'm it's i've i'd you're that's what's let's isn't aren't wasn't haven't as so up out off "
    "down back all one time people day days year years way new good first work world life name message "
    "mail email phone help think see look like use used using say said tell told ask give find found "
    "keep let put seem feel try leave call return returns returned value values string object objects "
    "list file files function method class default raise raises given set sets error number type "
    "arguments movie allow allowed wheelchair meal pregnant boarding pass passport seats fee fees "
    "everyone everybody nobody somebody someone himself herself myself yourself love loves sometimes "
    "whenever free check lost buy until"
)
# Words of the neighbours that would otherwise pass for Spanish or English.
_OTHER = (
    "não uma são está você vocês isso isto muito também então quando onde meu minha seu sua dos das nos "
    "nas ao aos pelo pela ele eles foi ser tem têm posso quero com em um os as mais le les des est une "
    "dans pour avec je vous nous il elle sont sur pas qui que où être avoir au aux du ce cette mon ma "
    "mes votre notre ne et puis peux der die und ist nicht ich ein eine einen mit auf für von zu den "
    "dem wie wir sie es kann haben werden mein che non di è per sono della gli nel una questo questa "
    "come con mio mia del els amb és són aquest aquesta puc meva quina quant"
)

_SPANISH = frozenset(_SPANISH_STRONG.split())
_ENGLISH = frozenset(_ENGLISH_STRONG.split())
_FOREIGN = frozenset(_OTHER.split())
_CONTRACTIONS = ("'s", "'re", "'ll", "'ve", "n't", "'d", "'m")
_WORD_POINTS = 3.0

# (pattern, points): what a word that is in no list tells by its look.
_SPANISH_LOOKS = re.compile(
    r"ñ|(?:ción|cion|ciones|sión|sion|siones|mente|idad|idades|ando|iendo|ado|ada|ados|adas|ido|ida|idos|idas|aje|ero|"
    r"era|eros|ito|ita|aba|aban|aron|ieron|aremos|aré|ará|ería|erías|arse|arme|arlo|arla|erlo|ujo|uje|ez|eza|anza|"
    r"encia|ancia|ario|aria|oso|osa|illo|illa|ista|ible|able|ar|er|ir|amos|emos|imos|as|os|es|an|en|a|o)$|^(?:ll|hue|"
    r"des|qui|que)",
)
_ENGLISH_LOOKS = re.compile(
    r"[wk]|th|sh|ck|ph|oo|ee|ght|ough|[^aeiou]y$|(?:ing|tion|tions|sion|ness|ment|ments|ful|less|ally|ly|ed|er|ers|"
    r"est|ity|ous|ive|ize|ized|ght|ough|'s|’s|ts|ns|ds|ll|ss|ng|nd|nt|st|rt|ct|ft|mp|ey|ay|ow|y|t|k|h|m|p|g)$|^(?:wh|"
    r"un|over|out)",
)


def detect_language(text: str) -> str:
    """ "es", "en", or "und" when the text says too little or is in another language."""
    read = text[:_READ_CHARACTERS]
    plain = _CODE.sub(" ", read)
    spanish = english = foreign = 0.0
    first = True
    spanish += 4.0 * (("¿" in plain) + ("¡" in plain) + ("ñ" in plain or "Ñ" in plain))
    for written in _WORD.findall(plain.replace("’", "'")):
        word = written.lower()
        is_spanish, is_english = word in _SPANISH, word in _ENGLISH or word.endswith(_CONTRACTIONS)
        if is_spanish:
            spanish += _WORD_POINTS
        if is_english:
            english += _WORD_POINTS
        if word in _FOREIGN:
            foreign += _WORD_POINTS
        if not is_spanish and not is_english and len(word) > 2 and (first or not written[0].isupper()):
            # A capital inside a sentence is most often a name, which looks like the language of its bearer.
            look_spanish, look_english = _look(word)
            spanish += look_spanish
            english += look_english
        first = False
    best = max(spanish, english)
    if best < 1.0 or foreign > best or abs(spanish - english) < 0.1 * best:
        return "und"
    return "es" if spanish > english else "en"


def _look(word: str) -> tuple[float, float]:
    spanish = 1.0 if _SPANISH_LOOKS.search(word) else 0.0
    english = 1.0 if _ENGLISH_LOOKS.search(word) else 0.0
    if not word.isascii() and any(letter in "áéíóúü" for letter in word):
        spanish += 2.0
    return spanish, english
