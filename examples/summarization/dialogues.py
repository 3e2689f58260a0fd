"""Short dialogues in which two friends make a plan, in English and Spanish, with five kinds of notes about each.

The first proposal is often turned down, so that the summary cannot be copied from the first lines.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

_NAMES = (
    *("Ana", "Luis", "Carmen", "Pedro", "Lucía", "Marta", "Sara", "Hugo", "Elena", "Diego"),
    *("Tom", "Alice", "Jack", "Emma", "Ben", "Rose", "Sam", "Kate", "Paul", "Helen"),
)
_PLANS = {
    "en": (
        *("go to the cinema", "visit the museum", "play tennis", "paint the kitchen", "have dinner together"),
        *("study for the exam", "walk in the park", "buy a lamp", "cook fish", "swim in the lake"),
    ),
    "es": (
        *("ir al cine", "visitar el museo", "jugar al tenis", "pintar la cocina", "cenar juntos"),
        *("estudiar para el examen", "pasear por el parque", "comprar una lámpara", "cocinar pescado"),
        "nadar en el lago",
    ),
}
_DAYS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "es": ("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
}
_HOURS = {
    "en": ("three", "four", "five", "six", "seven", "eight", "nine"),
    "es": ("tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
}
_EXCUSES = {
    "en": ("I am working then", "I have a doctor's appointment", "my mother is coming", "I will be tired"),
    "es": ("entonces trabajo", "tengo cita con el médico", "viene mi madre", "estaré en casa de mi tía"),
}
_SMALL_TALK = {
    "en": (
        ("How are you?", "Very well, thank you."),
        ("Did you sleep well?", "Not much, it was too hot."),
        ("What a cold day!", "Yes, winter is here."),
    ),
    "es": (
        ("¿Qué tal estás?", "Muy bien, gracias."),
        ("¿Has dormido bien?", "Poco, hacía mucho calor."),
        ("¡Qué día tan frío!", "Sí, ya es invierno."),
    ),
}
# What is written about a dialogue; a model that has only read them does not know which one a person wants.
KINDS = ("summary", "people", "time", "excuse", "plan")
SUMMARY = "summary"


@dataclass(frozen=True)
class Dialogue:
    """A dialogue, a line for each turn, and the notes about it by kind."""

    text: str
    language: str
    notes: Mapping[str, str]


def dialogue(random_: random.Random) -> Dialogue:
    """One dialogue in either language."""
    language = random_.choice(("en", "es"))
    first, second = random_.sample(_NAMES, 2)
    plan = random_.choice(_PLANS[language])
    refused, day = random_.sample(_DAYS[language], 2)
    hour, excuse = random_.choice(_HOURS[language]), random_.choice(_EXCUSES[language])
    small = random_.choice(_SMALL_TALK[language])
    turned_down = random_.random() < 0.6
    turns = list(small) if random_.random() < 0.5 else []
    if language == "en":
        turns.append(f"Shall we {plan} on {refused if turned_down else day}?")
        if turned_down:
            turns += [f"I can't, {excuse}.", f"And on {day}?"]
        turns += ["Good idea. At what time?", f"At {hour}.", "See you then!"]
        summary = f"{first} and {second} will {plan} on {day} at {hour}."
        people, time = f"{first} and {second}", f"{day} at {hour}"
    else:
        turns.append(f"¿Quieres {plan} el {refused if turned_down else day}?")
        if turned_down:
            turns += [f"No puedo, {excuse}.", f"¿Y el {day}?"]
        turns += ["Buena idea. ¿A qué hora?", f"A las {hour}.", "¡Hasta entonces!"]
        summary = f"{first} y {second} van a {plan} el {day} a las {hour}."
        people, time = f"{first} y {second}", f"el {day} a las {hour}"
    text = "\n".join(f"{(first, second)[number % 2]}: {turn}" for number, turn in enumerate(turns))
    none = "no excuse" if language == "en" else "ninguna excusa"
    notes = {
        SUMMARY: summary,
        "people": people,
        "time": time,
        "excuse": excuse if turned_down else none,
        "plan": plan,
    }
    return Dialogue(text, language, notes)


def dialogues(count: int, seed: int) -> list[Dialogue]:
    """Different dialogues, the same on every call."""
    random_ = random.Random(seed)
    found: dict[str, Dialogue] = {}
    while len(found) < count:
        made = dialogue(random_)
        found[made.text] = made
    return list(found.values())
