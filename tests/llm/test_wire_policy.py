"""What leaves this machine, and what does not; what comes back has the values in it again."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat, RegexFormat, Tool, ToolFormat
from yunque.llm import Chunk, Completion, Embeddings, Message, ScriptedModel, ToolCall, Usage
from yunque.llm.breaker import Breakers
from yunque.llm.face import ToolCallPart, joined_calls
from yunque.llm.policy import PolicedModel, PolicyRefusal, WirePolicy
from yunque.llm.router import Router, RouterSettings

CONFIG = GenerationConfig()
EMAIL, PHONE, NIF = "ana.perez@example.com", "+34 612 345 678", "12345678Z"
ASKED = [Message("user", f"Soy {EMAIL}, mi teléfono es {PHONE} y mi NIF {NIF}.")]
REMOTE = WirePolicy()


class Recording:
    """A remote model that keeps everything that it was sent, and answers with `pieces` in a stream."""

    local = False

    def __init__(
        self, pieces: Sequence[str] = ("vale",), calls: Sequence[str] = (), name: str = "openai/rec"
    ) -> None:
        self.name, self.pieces, self.calls = name, pieces, calls
        self.sent: list[str] = []

    def _keep(self, asked: object, config: GenerationConfig) -> None:
        self.sent.append(repr(asked) + config.model_dump_json())

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        self._keep(messages, config)
        parts = [ToolCallPart(0, piece, "c", "find") for piece in self.calls]
        return Completion("".join(self.pieces), self.name, "stop", Usage(1, 1), joined_calls(parts))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        self._keep(messages, config)
        for piece in self.pieces:
            yield Chunk(piece)
        for number, piece in enumerate(self.calls):
            yield Chunk(
                "", tool_calls=(ToolCallPart(0, piece, None if number else "c", None if number else "f"),)
            )
        yield Chunk("", "stop", Usage(1, 1), self.name)

    def complete(self, prompt: str, config: GenerationConfig) -> Completion:
        return self.chat([Message("user", prompt)], config)

    def stream_complete(self, prompt: str, config: GenerationConfig) -> Iterator[Chunk]:
        return self.stream_chat([Message("user", prompt)], config)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self._keep(texts, CONFIG)
        return Embeddings([[1.0] for _ in texts], 1)


def nothing_left(model: Recording) -> bool:
    return not any(value in sent for value in (EMAIL, PHONE, "612", NIF, "12345678") for sent in model.sent)


def test_without_the_policy_it_would_all_leave() -> None:
    model = Recording()
    PolicedModel(model, WirePolicy(personal_data="send")).chat(ASKED, CONFIG)
    assert not nothing_left(model)


def test_personal_data_stays_here_and_comes_back_in_the_answer() -> None:
    model = Recording(("Escribo a [EMAIL-1] y llamo al [PHONE-1].",))
    answer = PolicedModel(model, REMOTE).chat(ASKED, CONFIG)
    assert answer.text == f"Escribo a {EMAIL} y llamo al {PHONE}."
    assert nothing_left(model) and "[EMAIL-1]" in model.sent[0]


def test_calls_of_tools_and_their_results_are_redacted_too() -> None:
    arguments = json.dumps({"to": EMAIL, "phone": 612345678}).replace("@", "\\u0040")
    asked = [
        Message("system", f"El jefe es {EMAIL}"),
        Message("assistant", "", (ToolCall("c1", "send", arguments),)),
        Message("tool", json.dumps({"sent": [EMAIL, {PHONE: NIF}]}), tool_call_id="c1"),
    ]
    model = Recording()
    PolicedModel(model, REMOTE).chat(asked, CONFIG)
    assert nothing_left(model)
    assert "ana.perez" not in model.sent[0]


def test_forms_tools_and_stop_strings_are_redacted_too() -> None:
    model = Recording(("[EMAIL-1]",))
    policed = PolicedModel(model, REMOTE)
    schema = {"enum": [EMAIL, "otro"], "description": f"de {NIF}"}
    tool = Tool(name="send", description=f"a {EMAIL}", parameters={"type": "object", "title": PHONE})
    asked = [Message("user", "¿A quién?")]
    for form in (
        ChoiceFormat(options=(EMAIL, "nadie")),
        JsonFormat(json_schema=schema),
        ToolFormat(tools=(tool,)),
    ):
        answer = policed.chat(asked, GenerationConfig(format=form, stop=(NIF,)))
        assert EMAIL in answer.text or isinstance(form, ToolFormat | JsonFormat)
    assert nothing_left(model)
    with pytest.raises(PolicyRefusal, match="pattern"):
        policed.chat(asked, GenerationConfig(format=RegexFormat(pattern=EMAIL)))


def test_a_value_put_back_into_json_keeps_it_json() -> None:
    asked = [Message("user", 'Escribe a "ana\u200b.perez@example.com"')]
    model = Recording(('{"to": "[EMAIL-1]"}',), calls=('{"to": "[EM', 'AIL-1]"}'))
    form = GenerationConfig(format=JsonFormat())
    answer = PolicedModel(model, REMOTE).chat(asked, form)
    assert json.loads(answer.text)["to"].replace("\u200b", "") == EMAIL
    assert json.loads(answer.tool_calls[0].arguments)["to"].replace("\u200b", "") == EMAIL


def test_what_the_policy_refuses_never_leaves() -> None:
    model = Recording()
    policed = PolicedModel(model, WirePolicy(personal_data="refuse"))
    for ask in (policed.chat, policed.stream_chat):
        with pytest.raises(PolicyRefusal, match="EMAIL") as caught:
            ask(ASKED, CONFIG)
        assert EMAIL not in str(caught.value)
    with pytest.raises(PolicyRefusal):
        policed.complete(ASKED[0].content, CONFIG)
    with pytest.raises(PolicyRefusal):
        policed.stream_complete(ASKED[0].content, CONFIG)
    with pytest.raises(PolicyRefusal):
        policed.embed([ASKED[0].content])
    assert model.sent == []
    assert policed.chat([Message("user", "¿Cuánto pesa?")], CONFIG).text == "vale"


def test_tokens_cannot_be_searched_and_do_not_leave() -> None:
    model = Recording()
    with pytest.raises(PolicyRefusal, match="tokens"):
        PolicedModel(model, REMOTE).complete([1, 2, 3], CONFIG)
    assert model.sent == []


@pytest.mark.parametrize(
    ("where", "name", "allowed"),
    [
        ("anywhere", "openai/x", True),
        ("local", "openai/x", False),
        ("local", "http://127.0.0.1:11434/v1#x", False),
        (("openai",), "openai/x", True),
        (("openai",), "anthropic/x", False),
        (("openai",), "http://127.0.0.1:11434/v1#openai", False),
        (("openai",), "http://openai@evil.example/v1#x", False),
        (("127.0.0.1:11434",), "http://127.0.0.1:11434/v1#x", True),
        (("127.0.0.1:11434",), "http://127.0.0.1:11435/v1#x", False),
        ((), "openai/x", False),
    ],
)
def test_a_request_goes_only_where_the_policy_lets_it(where: object, name: str, allowed: bool) -> None:
    model = Recording(name=name)
    policed = PolicedModel(model, WirePolicy(where=where))  # type: ignore[arg-type]
    if allowed:
        assert policed.chat([Message("user", "hola")], CONFIG).text
    else:
        with pytest.raises(PolicyRefusal):
            policed.chat([Message("user", "hola")], CONFIG)
        assert model.sent == []


def test_a_local_model_sees_everything() -> None:
    model = ScriptedModel(lambda messages: messages[-1].content, "mini")
    policed = PolicedModel(model, WirePolicy(where="local", personal_data="refuse"))
    assert EMAIL in policed.chat(ASKED, GenerationConfig(max_new_tokens=100)).text


def test_a_refused_request_is_answered_by_the_local_model() -> None:
    remote, local = Recording(), ScriptedModel(lambda _: "de aquí", "mini")
    policy = WirePolicy(personal_data="refuse")
    named = {"openai/rec": PolicedModel(remote, policy), "mini": PolicedModel(local, policy)}
    router = Router(RouterSettings(model="openai/rec", local_fallback="mini"), named, Breakers())
    answer = router.chat(ASKED, CONFIG)
    assert answer.text == "de aquí" and "personal data" in answer.note
    assert remote.sent == []


def test_what_came_back_is_taken_out_again_in_the_next_request() -> None:
    model = Recording(("Hola, [EMAIL-1]",))
    policed = PolicedModel(model, REMOTE)
    answer = policed.chat(ASKED, CONFIG)
    policed.chat([*ASKED, Message("assistant", answer.text), Message("user", "¿Seguro?")], CONFIG)
    assert EMAIL in answer.text and nothing_left(model)


def test_nobody_gets_anothers_data_by_writing_a_placeholder() -> None:
    model = Recording(("[EMAIL-1] y [EMAIL-2] y [MARK-1]",))
    policed = PolicedModel(model, REMOTE)
    policed.chat(ASKED, CONFIG)
    answer = policed.chat([Message("user", "Dime quién es [EMAIL-1]")], CONFIG)
    # Nothing was taken out of this request, so nothing is put into its answer.
    assert answer.text == "[EMAIL-1] y [EMAIL-2] y [MARK-1]" and "[EMAIL-1]" in model.sent[-1]
    answer = policed.chat([Message("user", f"Soy {PHONE}, dime quién es [EMAIL-1]")], CONFIG)
    assert answer.text == "[EMAIL-1] y [EMAIL-2] y [EMAIL-1]" and "[EMAIL-1]" not in model.sent[-1]


def test_a_request_without_personal_data_is_sent_as_it_is() -> None:
    class Same(Recording):
        def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
            assert messages is asked and config is CONFIG
            return super().chat(messages, config)

    asked = [Message("user", "El correo de [EMAIL-1] y el [PHONE-2]")]
    assert PolicedModel(Same(("A [EMAIL-1]",)), REMOTE).chat(asked, CONFIG).text == "A [EMAIL-1]"


ANSWER = "Hola [EMAIL-1]: [nota], [PHO NE-1] [[PHONE-1]] [NIF-1][EMAIL-9] y [EMAIL-"


@given(st.lists(st.integers(1, len(ANSWER) - 1), max_size=12))
def test_a_placeholder_split_over_chunks_is_put_back_as_if_it_were_not(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(ANSWER)]
    pieces = [ANSWER[a:b] for a, b in pairwise(edges)]
    whole = PolicedModel(Recording((ANSWER,)), REMOTE).chat(ASKED, CONFIG).text
    chunks = PolicedModel(Recording(pieces, calls=pieces), REMOTE).stream_chat(ASKED, CONFIG)
    told = list(chunks)
    assert "".join(chunk.text for chunk in told) == whole
    assert EMAIL in whole and f"[{PHONE}]" in whole and whole.endswith("[EMAIL-")
    called = joined_calls(part for chunk in told for part in chunk.tool_calls)
    assert called[0].arguments == whole


def test_no_more_is_held_back_than_could_be_a_placeholder() -> None:
    pieces = ("uno [", "dos", "] [EMA", "IL", "-1", "] [X")
    told = [chunk.text for chunk in PolicedModel(Recording(pieces), REMOTE).stream_chat(ASKED, CONFIG)]
    assert told == ["uno ", "[dos", "] ", "", "", f"{EMAIL} [X", ""]
    model = Recording(("Tres [EMAIL", "-1]"))
    router = Router(
        RouterSettings(model="openai/rec"), {"openai/rec": PolicedModel(model, REMOTE)}, Breakers()
    )
    assert "".join(chunk.text for chunk in router.stream_chat(ASKED, CONFIG)) == f"Tres {EMAIL}"


# Numbers


def test_the_bounds_of_a_schema_stay_numbers_and_its_texts_are_searched() -> None:
    schema = {
        "type": "object",
        "properties": {
            "order": {
                "type": "integer",
                "minimum": 600000000,
                "maximum": 612345678,
                "description": f"ask {EMAIL}",
                "examples": [612345678],
            }
        },
    }
    sent: list[GenerationConfig] = []

    class Seeing(Recording):
        def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
            sent.append(config)
            return super().chat(messages, config)

    tool = Tool(name="look", parameters=schema)
    for form in (ToolFormat(tools=(tool,)), JsonFormat(json_schema=schema)):
        PolicedModel(Seeing(), REMOTE).chat(ASKED, GenerationConfig(format=form))
        form = sent.pop().format
        told = form.tools[0].parameters if isinstance(form, ToolFormat) else form.json_schema  # type: ignore[union-attr]
        order = told["properties"]["order"]
        assert (order["minimum"], order["maximum"]) == (600000000, 612345678)
        assert EMAIL not in str(order) and "612345678" not in str(order["examples"])


TOLD = [
    Message("user", "¿Quién llama?"),
    Message("assistant", "", (ToolCall("c1", "f", "{}"),)),
    Message("tool", '{"phone": 612345678, "text": "+34 612 345 679"}', tool_call_id="c1"),
]


def test_a_number_comes_back_as_a_number_and_a_text_as_a_text() -> None:
    said = ['{"call": "[PHONE-', '1]", "say": "[PHONE-1]!", "other": "[PHONE-2]"}']
    expected = {"call": 612345678, "say": "612345678!", "other": "+34 612 345 679"}
    model = PolicedModel(Recording(calls=said), REMOTE)
    assert json.loads(model.chat(TOLD, CONFIG).tool_calls[0].arguments) == expected
    whole = "".join(said)
    for size in range(1, 12):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        chunks = list(PolicedModel(Recording(calls=pieces), REMOTE).stream_chat(TOLD, CONFIG))
        calls = joined_calls(part for chunk in chunks for part in chunk.tool_calls)
        assert json.loads(calls[0].arguments) == expected


def test_a_number_that_was_met_in_another_spelling_before_stays_a_text() -> None:
    asked = [Message("user", "+34 612 345 678"), *TOLD[1:]]
    recording = Recording(calls=['{"call": "[PHONE-1]"}'])
    arguments = PolicedModel(recording, REMOTE).chat(asked, CONFIG).tool_calls[0].arguments
    assert str(json.loads(arguments)["call"]).replace(" ", "").endswith("612345678")
