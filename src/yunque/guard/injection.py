"""Instructions smuggled into data: orders to drop the real ones, to hand over the prompt, or to play somebody else.

Patterns in English and Spanish over plain text (see `views`). Each has a weight; 1 is enough to block.
They know attempts that are worded like known ones. A new wording passes, which is why what comes out is checked too.
"""

import re
from dataclasses import dataclass

from yunque.guard.views import views

_DROP_EN = (
    r"(?:ignor\w*|disregard\w*|forget\w*|skip|bypass|overrid\w+|override|neglect|overlook|"
    r"discard|abandon|erase|drop|cancel|"
    r"do not (?:follow|obey|heed)|don.?t (?:follow|obey|heed)|stop (?:following|obeying)|"
    r"pay no attention to|take no notice of|set aside)"
)
_DROP_ES = (
    r"(?:ignor\w*|olvid\w*|descart\w+|desatiend\w+|desobedec\w+|desobedezc\w+|omit\w+|"
    r"salta(?:te)?|pasa por alto|anula\w*|"
    r"no (?:sigas|obedezcas|hagas caso)|deja de (?:seguir|obedecer)|haz caso omiso|"
    r"hagas caso omiso|no tengas en cuenta|borra)"
)
_ORDERS_EN = (
    r"(?:instruct\w*|prompts?|directions?|directives?|rules?|commands?|guidelines?|orders?|"
    r"context|restrictions?|programming|"
    r"training|constraints?|polic(?:y|ies)|guardrails?|filters?|"
    r"safeguards?|briefing|system message|tasks?)"
)
_ORDERS_ES = (
    r"(?:instruccion\w*|prompts?|indicacion\w*|directric\w+|directivas?|reglas?|ordenes|orden|"
    r"mandatos?|normas de (?:uso|seguridad|sistema)|contexto|"
    r"restriccion\w*|programacion|entrenamiento|mensajes?|consignas?|filtros?|tarea)"
)
_BEFORE_EN = (
    r"(?:previous|prior|above|earlier|preceding|former|past|last|initial|original|existing|"
    r"current|system|given|all|any|every|your|my|these|those)"
)
_BEFORE_ES = (
    r"(?:previ[ao]s?|anterior(?:es)?|de arriba|precedentes?|iniciales|original(?:es)?|"
    r"actuales|del sistema|recibidas?|dadas?|tod[ao]s?|tus|mis|est[ao]s|es[ao]s|cualquier)"
)
_SHOW_EN = (
    r"(?:reveal|show|print|tell|give|repeat|output|display|leak|recite|write(?: out)?|dump|"
    r"expose|return|share|what (?:is|are|was|were|does)|what's|summari[sz]e|translate|"
    r"describe|copy|spell|list|disclose|provide|paste)"
)
_SHOW_ES = (
    r"(?:revela\w*|muestra\w*|mostrar|imprim\w+|di(?:me)?|dame|repit\w+|repetir|ensena\w*|"
    r"escrib\w+|devuelv\w+|filtra\w*|cual(?:es)? (?:es|son|era|eran|fue\w*)|que (?:dice|pone|"
    r"instrucciones)|resum\w+|traduc\w+|describ\w+|copia\w*|transcrib\w+|lista\w*)"
)
_PROMPT_EN = (
    r"(?:(?:system|initial|original|hidden|secret|full|entire|starting|internal|whole|"
    r"developer|base|above|previous|your) (?:\w+ )?(?:prompt|instructions?|message|template|"
    r"directives?|configuration)|"
    r"your (?:prompt|instructions|template|system message)|the (?:system |initial |original )(?:prompt|"
    r"template|instructions)\b|the prompt\b|prompt template|(?:text|words|everything|lines?|conversation|"
    r"chat)s? (?:that (?:is|are|was|were|came) )?(?:above|before this|so far))"
)
_PROMPT_ES = (
    r"(?:(?:tu|tus|el|la|las|los|del|mensaje de|su|sus) (?:\w+ )?(?:prompt|instrucciones|"
    r"plantilla|mensaje (?:de|del) sistema|mensaje inicial|directrices|reglas internas|"
    r"configuracion interna)|"
    r"prompt (?:de|del) sistema|instrucciones (?:iniciales|originales|ocultas|secretas|"
    r"del sistema|internas|que (?:te|has))|(?:texto|palabras|todo|lo|mensaje) (?:que (?:hay|"
    r"esta|estan|aparece) )?(?:arriba|de arriba|anterior|previo|antes de esto))"
)


@dataclass(frozen=True)
class _Pattern:
    name: str
    weight: float
    expression: re.Pattern[str]


def _patterns(*rows: tuple[str, float, str]) -> tuple[_Pattern, ...]:
    return tuple(
        _Pattern(name, weight, re.compile(expression, re.MULTILINE | re.DOTALL))
        for name, weight, expression in rows
    )


_GAP = r"[^.!?\n]{0,50}?\b"
_PATTERNS = _patterns(
    ("drops its instructions", 1, rf"\b{_DROP_EN}\b{_GAP}{_BEFORE_EN}\b{_GAP}{_ORDERS_EN}\b"),
    (
        "drops its instructions",
        1,
        rf"\b{_DROP_EN}\b (?:the |what(?:ever)? |everything |anything |all )*{_GAP}(?:told|"
        rf"said above|said before|the above|come before|came before|were taught|been taught|"
        rf"you know about|learned)\b",
    ),
    (
        "drops its instructions",
        1,
        rf"\b{_DROP_EN}\b (?:the |all |that )*(?:above|instructions?|rules|guidelines|prompt|"
        rf"directives)\b",
    ),
    (
        "drops its instructions",
        1,
        rf"\b{_DROP_ES}\b{_GAP}(?:{_BEFORE_ES}\b{_GAP}{_ORDERS_ES}|"
        rf"{_ORDERS_ES}\b{_GAP}{_BEFORE_ES})\b",
    ),
    (
        "drops its instructions",
        1,
        rf"\b{_DROP_ES}\b (?:por completo |totalmente )?(?:todo )?(?:lo (?:que (?:te|se te|has|hay|"
        rf"dije|dijeron|viene)|anterior|de arriba|previo|dicho)|(?:las |tus |sus )?instrucciones|"
        rf"el prompt|las reglas)",
    ),
    (
        "does nothing with the text",
        1,
        r"\bdo (?:nothing|not do anything|not translate|not answer)\b[^.\n]{0,40}\b(?:with|to|"
        r"about)?\b[^.\n]{0,20}\b(?:following|text|below)\b",
    ),
    (
        "does nothing with the text",
        1,
        r"\bno (?:hagas nada|traduzcas|respondas|hagas nada mas)\b[^.\n]{0,40}\b(?:siguiente|"
        r"texto|abajo|frase)\b",
    ),
    (
        "repeats a given text",
        1,
        r"\b(?:provide|return|output|repeat|print|echo|give|reproduce|write|"
        r"say)\b[^.\n]{0,30}\b(?:the )?(?:same|exact|identical) (?:text|words?|string|sentence|"
        r"phrase)\b",
    ),
    (
        "repeats a given text",
        1,
        r"\b(?:proporciona|devuelve|repite|imprime|da|dame|reproduce|copia|escribe|di|entrega|"
        r"muestra|pon)\w*\b[^.\n]{0,30}\b(?:mism[ao]|exact[ao]|identic[ao]) (?:texto|palabras?|"
        r"cadena|frase)\b",
    ),
    (
        "repeats a given text",
        1,
        r"\b(?:repeat after me|say exactly|repite (?:conmigo|despues de mi|exactamente)|"
        r"di exactamente|just say|only say|(?:only|just) (?:reply|respond|answer|output|print|"
        r"write) (?:with )?[\"'“«])",
    ),
    ("asks for the prompt", 1, rf"\b{_SHOW_EN}\b{_GAP}{_PROMPT_EN}"),
    ("asks for the prompt", 1, rf"\b{_SHOW_ES}\b{_GAP}{_PROMPT_ES}"),
    (
        "asks for the prompt",
        1,
        r"\b(?:system prompt|prompt (?:de|del) sistema|prompt template|plantilla del prompt|"
        r"prompt injection|prompt leak)\b",
    ),
    (
        "asks for a secret",
        1,
        r"\b(?:what(?:'s| is| was)|tell me|reveal|print|show|give me|output|say|spell|share|"
        r"cual es|dime|revela|muestra|dame)\b[^.\n]{0,30}\b(?:your|the|tu|la|el) (?:secret|hidden|"
        r"confidential|clave secreta|palabra secreta|contrasena secreta|secreto|secreta|api key|"
        r"clave de api)\b",
    ),
    (
        "gives it another role",
        1,
        r"\byou(?:'re| are| will be| shall be)? (?:now|from now on|hereby)\b[^.\n]{0,60}\b(?:a|an|"
        r"the|my|no longer|in|going to|named|called|free|dan|evil|unrestricted|act|pretend|"
        r"respond|answer|speak|ignore|must)\b",
    ),
    (
        "gives it another role",
        1,
        r"\b(?:from now on|starting now|henceforth)\b,? (?:you|your|act|answer|respond|reply|"
        r"speak|only)\b",
    ),
    (
        "gives it another role",
        1,
        r"\b(?:desde ahora|a partir de (?:ahora|este momento)|"
        r"de ahora en adelante)\b,? (?:\w+ )?(?:eres|seras|tu|vas a|actua\w*|responde\w*|"
        r"contesta\w*|te llamas|debes|hablas?|finge)\b",
    ),
    (
        "gives it another role",
        1,
        r"\b(?:pretend|imagine|suppose|simulate|role-?play|act|behave|respond|answer|"
        r"speak)\b[^.\n]{0,20}\b(?:to be|you are|you're|that you|as (?:if|though|an? (?:ai|"
        r"assistant|model|bot|chatbot|terminal|console|shell|interpreter|hacker|developer|"
        r"unrestricted|evil|linux|python|character)|dan\b|my (?:late |deceased |dead )?gran))",
    ),
    (
        "gives it another role",
        1,
        r"\b(?:finge|simula|imagina|haz como|actua|comportate|responde|habla|"
        r"interpreta)\w*\b[^.\n]{0,20}\b(?:que eres|ser (?:un|una|mi|el|la)|como (?:si fueras|"
        r"un[ao]? (?:ia|asistente|modelo|bot|terminal|consola|interprete|hacker|personaje|linux)|"
        r"mi (?:difunta )?abuela|dan\b)|el papel de)",
    ),
    (
        "gives it another role",
        1,
        r"\b(?:do anything now|(?:system|admin|administrator|debug|maintenance|diagnostic|"
        r"override|root|test) mode (?:on|enabled|activated)|(?:enter|activate|enable|switch to|"
        r"you are (?:now )?in) (?:system|admin|administrator|debug|maintenance|diagnostic|"
        r"override|root|test) mode|(?:entra en|activa(?:r)?|cambia a|"
        r"estas en) (?:el )?modo (?:sistema|administrador|depuracion|mantenimiento|diagnostico|"
        r"prueba|root)|dan mode|developer mode|jail ?br(?:eak|oken)|god mode|"
        r"modo desarrollador|modo dios|sudo mode|stay in character|break character|"
        r"unfiltered (?:ai|assistant|model|response)|without (?:any )?(?:restrictions|censorship|"
        r"ethical|moral|filters?)|sin (?:ninguna )?(?:restricciones|censura|filtros|"
        r"limites eticos)|no (?:ethical|moral) (?:guidelines|restrictions|limits)|"
        r"does not (?:have|follow) any (?:rules|restrictions|ethic))",
    ),
    (
        "gives new instructions",
        1,
        r"\b(?:new|updated|real|actual|following|important) (?:system )?(?:instructions?|task|"
        r"directive|prompt|orders?|rules)\b ?(?::|is\b|are\b|from)",
    ),
    (
        "gives new instructions",
        1,
        r"\b(?:nuev[ao]s?|verdader[ao]s?|siguientes?) (?:instrucciones|tarea|directriz|prompt|"
        r"ordenes|orden|reglas)\b ?(?::|es\b|son\b)",
    ),
    (
        "gives new instructions",
        1,
        r"\b(?:your (?:new|real|only|true|next) (?:task|job|role|goal|purpose|objective|mission)|"
        r"tu (?:nueva|verdadera|unica) (?:tarea|mision|funcion)|tu nuevo (?:rol|papel|trabajo|"
        r"objetivo))\b",
    ),
    (
        "forges a turn of the conversation",
        1,
        r"^\W{0,4}(?:system|assistant|human|user|developer|sistema|asistente|usuario|"
        r"humano)\W{0,3}(?:message|prompt|mensaje)?\s*[:>\]]\s*\S",
    ),
    (
        "forges a turn of the conversation",
        1,
        r"\[(?:system|inst|/inst|assistant|user|sistema)[^\]]{0,20}\]|<{1,2}/?(?:sys|system|"
        r"assistant|user|human|instructions?|prompt|passages|pasajes|texto|text)>{1,2}|"
        r"^#{2,} ?(?:instruction|system|response|human|assistant|input|instruccion|respuesta|"
        r"sistema|end)|-{3,} ?(?:end|begin|fin|inicio)\b",
    ),
    (
        "writes a special token",
        1,
        r"<\|[a-z0-9_ ]{2,30}\|>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[(?:bos|"
        r"eos|cls|sep|mask)\]|<0x[0-9a-f]{2}>|<(?:extra_id|reserved)_\d+>",
    ),
    (
        "writes a program",
        0.5,
        r">>>|^\s*\.\.\. |\bprint\s*\(|console\.log\s*\(|\bimprimir\s*\(|\becho\s+[$\"']|"
        r"\brepr\s*\(|\b(?:eval|exec|input|open)\s*\(|^\s*(?:def|class|import|from \w+ import|"
        r"const|let|var|function)\b[^.\n]{0,60}[=({:;]|^\s*(?:in|out)\s?\[\d+\]:|"
        r"\bpython\s?\d(?:\.\d+)*\b|^\s*\w+ = ['\"f\[]",
    ),
    (
        "names the prompt in a program",
        0.5,
        r"\b(?:previous|prior|above|first|last|original|initial|system|hidden|this|"
        r"current)[_ ]?(?:code|prompt|text|line|command|template|message|instruction|string|input|"
        r"program|statement)s?\b|\b(?:codigo|prompt|texto|linea|comando|plantilla|mensaje|"
        r"instruccion|programa)[_ ]?(?:anterior|previ[ao]|original|inicial|del sistema|oculto|"
        r"actual)\b|\bprompt\b\s*[=)\]]|[=(]\s*(?:the_|el_)?prompt\b|__(?:doc|code|globals|file)__|\b(?:globals|locals|vars|"
        r"inspect)\s*[.(]",
    ),
    (
        "puts a text together from pieces",
        1,
        r"(?:\b\w{1,12} ?= ?[\"'][^\"'\n]{1,40}[\"'][\s,;.]*(?:and |"
        r"y )?){2,}[^\n]{0,80}(?:\b\w{1,12} ?\+ ?\w{1,12}\b)",
    ),
    (
        "orders to decode",
        1,
        r"\b(?:decode|decipher|decrypt|descifra|decodifica|"
        r"descodifica)\w*\b[^.\n]{0,60}\b(?:base ?64|rot ?13|hex\w*|morse|caesar|cesar|binary|"
        r"binario|cipher|cifrado|follow|execute|obey|ejecuta\w*|sigue|obedece)\b|\b(?:base ?64|"
        r"rot ?13)\b[^.\n]{0,40}\b(?:decode|encode|decodifica|codifica|execute|follow)",
    ),
)

# Readings that turn ordinary words into others by chance are trusted only on the plainest attempts.
_DOUBTFUL = frozenset({"ROT13", "reversed text", "digits for letters"})


@dataclass(frozen=True)
class Suspicion:
    """What looks like an injection: `weight` 1 or more is taken for one."""

    weight: float
    evidence: str


def suspect_injection(text: str) -> Suspicion:
    """How much a text looks like it gives orders to the model, and by what."""
    best = Suspicion(0.0, "")
    for reading, plain_text in views(text):
        flat = re.sub(r"[^\S\n]+", " ", plain_text)
        weight, named = 0.0, list[str]()
        seen: set[str] = set()
        for pattern in _PATTERNS:
            if pattern.name in seen or (reading in _DOUBTFUL and pattern.weight < 1):
                continue
            if match := pattern.expression.search(flat):
                seen.add(pattern.name)
                weight += pattern.weight
                words = " ".join(match[0].split())
                named.append(f"{pattern.name}: “{words[:60]}”")
        if weight > best.weight:
            best = Suspicion(weight, ("; ".join(named) + (f" (read as {reading})" if reading else ""))[:300])
    return best
