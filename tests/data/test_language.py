"""Short questions, as people type them, are told apart."""

import pytest

from yunque.data.language import detect_language

SPANISH = """puedo llevar mi perro en cabina?|cuanto pesa la maleta|q pasa si pierdo el vuelo|reembolso|menores solos
peudo cambair el billete|equipaje de mano medidas|¿Y el gato?|wifi a bordo|horario atencion cliente|silla de ruedas
devoluciones plazo|la niña viaja sola|Tom llegó tarde.|Me encanta esta película|no me gusta nada
quiero cancelar la reserva ABC123|Resume el siguiente texto en una frase.|donde esta mi maleta perdida""".replace(
    "\n", "|"
)
ENGLISH = """can I bring my dog?|how much is a 2nd bag|refund?|liquids allowed?|wht is teh max wieght
hand baggage size
seat selection fee|unaccompanied minor age|wheelchair|Tom arrived late.|I love this movie|do not like it at all
cancel booking ABC123 please|Summarize the following text in one sentence.|where is my lost suitcase
Return the index of the first item whose value is x.""".replace("\n", "|")
NEITHER = """12345||print(x)|IB3456|Puis-je emmener mon chien en cabine ?|Posso levar o meu cachorro na cabine?
Kann ich meinen Hund mitnehmen?
Posso portare il mio cane in cabina?
Puc portar el meu gos?|https://example.com/the-path""".replace("\n", "|")


@pytest.mark.parametrize("text", SPANISH.split("|"))
def test_spanish_is_found(text: str) -> None:
    assert detect_language(text) == "es"


@pytest.mark.parametrize("text", ENGLISH.split("|"))
def test_english_is_found(text: str) -> None:
    assert detect_language(text) == "en"


@pytest.mark.parametrize("text", NEITHER.split("|"))
def test_what_is_neither_is_undetermined(text: str) -> None:
    assert detect_language(text) == "und"
