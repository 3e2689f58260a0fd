"""Answers given before: who gets them, which are kept, how many, and that they are erased with the person."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, Tool, ToolFormat
from yunque.llm import Chunk, Completion, Embeddings, Message, ModelUnavailable, ScriptedModel, Usage
from yunque.llm.breaker import Breakers
from yunque.llm.cache import AnswerCache, CachedModel, CacheSettings
from yunque.llm.router import Router, RouterSettings
from yunque.llm.scripted import Calls

CONFIG = GenerationConfig(max_new_tokens=50)
SECRET = b"s" * 32
EMAIL = "ana.perez@example.com"


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_262_400.0

    def __call__(self) -> float:
        return self.now


class Meaning:
    """Vectors by a list of words that mean the same."""

    name = "meaning"
    words = ({"maleta", "equipaje", "bag"}, {"pesar", "peso", "weigh"}, {"perro", "dog"})

    def embed(self, texts: Sequence[object]) -> Embeddings:
        vectors = []
        for text in texts:
            said = set(str(text).lower().replace("?", "").replace("¿", "").split())
            vectors.append([float(bool(said & group)) + 0.001 for group in self.words])
        return Embeddings(vectors, 1)


def cache_of(folder: Path, clock: Clock | None = None, **settings: object) -> AnswerCache:
    embedder = Meaning() if settings.get("likeness") else None
    made = CacheSettings(**settings)  # type: ignore[arg-type]
    return AnswerCache(folder / "answers.db", SECRET, made, embedder, clock or Clock())


def counting(name: str = "mini") -> ScriptedModel:
    """Answers with the number of the call."""
    model = ScriptedModel(lambda _: f"respuesta {len(model.asked)} a {EMAIL}", name)
    return model


def ask(model: CachedModel, text: str, config: GenerationConfig = CONFIG, streamed: bool = False) -> str:
    messages = [Message("system", "Sé breve."), Message("user", text)]
    if streamed:
        return "".join(chunk.text for chunk in model.stream_chat(messages, config)).strip()
    return model.chat(messages, config).text


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_the_same_question_is_answered_once(tmp_path: Path, first: bool, second: bool) -> None:
    inner = counting()
    model = CachedModel(inner, cache_of(tmp_path), "key/a")
    assert ask(model, "¿Cuánto pesa?", streamed=first) == ask(model, "¿Cuánto pesa?", streamed=second)
    assert len(inner.asked) == 1


def test_an_answer_from_the_cache_says_so_and_costs_nothing(tmp_path: Path) -> None:
    model = CachedModel(counting(), cache_of(tmp_path), "key/a")
    fresh = model.chat([Message("user", "hola")], CONFIG)
    again = model.chat([Message("user", "hola")], CONFIG)
    assert fresh.note == "" and again.note == "answered before, on 2026-11-21 12:00 UTC"
    assert again.cost and again.cost.usd == 0 and again.usage == fresh.usage and again.model == "mini"
    last = list(model.stream_chat([Message("user", "hola")], CONFIG))[-1]
    assert (last.note, last.finish_reason, last.usage) == (again.note, "stop", again.usage)


def test_anything_that_could_change_the_answer_is_another_question(tmp_path: Path) -> None:
    cache, inner = cache_of(tmp_path), counting()
    base = CachedModel(inner, cache, "key/a", policy="redact")
    others = [
        CachedModel(inner, cache, "key/b", policy="redact"),
        CachedModel(inner, cache, "key/a", policy="send"),
        CachedModel(inner, cache, "key/a", policy="redact", identity="mini@2"),
    ]
    ask(base, "¿Cuánto pesa?")
    for number, model in enumerate(others, 2):
        ask(model, "¿Cuánto pesa?")
        assert len(inner.asked) == number
    ask(base, "¿Cuánto pesa?", CONFIG.model_copy(update={"max_new_tokens": 51}))
    ask(base, "¿cuánto pesa?")
    base.chat([Message("user", "¿Cuánto pesa?")], CONFIG)
    base.complete("¿Cuánto pesa?", CONFIG)
    base.chat([Message("user", "Sé breve."), Message("user", "¿Cuánto pesa?")], CONFIG)
    assert len(inner.asked) == 9


def test_answers_cross_keys_only_where_asked(tmp_path: Path) -> None:
    inner = counting()
    cache = cache_of(tmp_path, shared=True)
    assert ask(CachedModel(inner, cache, "key/a"), "x") == ask(CachedModel(inner, cache, "key/b"), "x")


def test_what_is_drawn_calls_tools_fails_or_comes_from_another_model_is_not_kept(tmp_path: Path) -> None:
    cache, inner = cache_of(tmp_path), counting()
    model = CachedModel(inner, cache, "key/a")
    ask(model, "x", GenerationConfig(temperature=0.7))
    ask(model, "x", GenerationConfig(n=2))
    ask(model, "x", GenerationConfig(format=ToolFormat(tools=(Tool(name="find"),))))
    calling = ScriptedModel([Calls((("find", "{}"),)), Calls((("find", "{}"),))], "mini")
    ask(CachedModel(calling, cache, "key/a"), "y")
    ask(CachedModel(calling, cache, "key/a"), "y", streamed=True)
    broken = CachedModel(
        ScriptedModel([ModelUnavailable("reset"), ModelUnavailable("reset")], "mini"), cache, "k"
    )
    for streamed in (False, True):
        with pytest.raises(ModelUnavailable):
            ask(broken, "z", streamed=streamed)
    named = {"a/a": ScriptedModel([], "a/a", local=False), "mini": inner}
    router = Router(RouterSettings(model="a/a", fallbacks=("mini",)), named, Breakers())
    ask(CachedModel(router, cache, "key/a"), "w")
    ask(CachedModel(router, cache, "key/a"), "w", streamed=True)
    chunks = model.stream_chat([Message("user", "left")], CONFIG)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert len(cache) == 0
    sampled = CachedModel(inner, cache_of(tmp_path, sampled=True), "key/a")
    ask(sampled, "x", GenerationConfig(temperature=0.7))
    assert len(cache) == 1


def test_answers_grow_old(tmp_path: Path) -> None:
    clock, inner = Clock(), counting()
    model = CachedModel(inner, cache_of(tmp_path, clock, seconds=60), "key/a")
    ask(model, "x")
    clock.now += 59
    ask(model, "x")
    assert len(inner.asked) == 1
    clock.now += 2
    ask(model, "x")
    assert len(inner.asked) == 2


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    clock, inner = Clock(), counting()
    cache = cache_of(tmp_path, clock, most_entries=3)
    model = CachedModel(inner, cache, "key/a")
    for text in ("a", "b", "c"):
        clock.now += 100
        ask(model, text)
    clock.now += 100
    ask(model, "a")
    ask(model, "d")
    assert len(cache) == 3 and len(inner.asked) == 4
    ask(model, "a")
    assert len(inner.asked) == 4
    ask(model, "b")
    assert len(inner.asked) == 5


def test_no_more_bytes_are_kept_than_were_allowed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, most_bytes=3000)
    model = CachedModel(ScriptedModel(lambda _: "palabra " * 40, "mini"), cache, "key/a")
    for number in range(30):
        ask(model, f"pregunta {number}")
    assert 1 < len(cache) < 10
    huge = CachedModel(ScriptedModel(lambda _: "p" * 4000, "mini"), cache, "key/a")
    ask(huge, "grande")
    ask(huge, "grande")
    assert len(huge.model.asked) == 2  # type: ignore[attr-defined]


def test_another_wording_gets_the_answer_where_asked_and_another_meaning_does_not(tmp_path: Path) -> None:
    inner = counting()
    model = CachedModel(inner, cache_of(tmp_path, likeness=0.95), "key/a")
    first = ask(model, "¿Cuánto puede pesar la maleta?")
    assert ask(model, "¿Qué peso de equipaje?") == first
    ask(model, "¿Cuánto puede pesar el perro?")
    assert len(inner.asked) == 2
    exact = CachedModel(inner, cache_of(tmp_path), "key/a")
    ask(exact, "¿Y el peso de la maleta?")
    assert len(inner.asked) == 3


@pytest.mark.parametrize(
    "text",
    ["¿Puede pesar la maleta 32 kg?", f"¿Puede pesar la maleta 23 kg de {EMAIL}?", "¿Puede pesar la maleta?"],
)
def test_numbers_and_persons_in_a_question_must_be_the_same_however_alike(tmp_path: Path, text: str) -> None:
    inner = counting()
    model = CachedModel(inner, cache_of(tmp_path, likeness=0.5), "key/a")
    ask(model, "¿Puede pesar la maleta 23 kg?")
    ask(model, text)
    assert len(inner.asked) == 2
    ask(model, "¿23 kg puede pesar mi equipaje?")
    assert len(inner.asked) == 2


def test_likeness_without_an_embedding_model_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedding"):
        AnswerCache(tmp_path / "a.db", SECRET, CacheSettings(likeness=0.9))


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_person_is_erased_to_the_last_byte(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, likeness=0.9)
    words = iter([f"secreto{number} " * 30 for number in range(400)])
    inner = ScriptedModel(lambda messages: next(words) + messages[-1].content, "mini")
    config = GenerationConfig(max_new_tokens=1000)
    for number in range(120):
        ask(CachedModel(inner, cache, "key/a", subject=f"cliente-{number % 3}"), f"pregunta {number}", config)
    ask(CachedModel(inner, cache, "key/a"), f"¿Qué sabes de {EMAIL}?", config)
    ask(CachedModel(inner, cache, "key/a"), "Mi teléfono es el 612 345 678", config)
    before = everything_in(tmp_path)
    assert b"secreto120" in before and EMAIL.encode() in before and b"secreto1 " in before
    assert cache.forget(EMAIL.upper().replace("EXAMPLE.COM", "example.com")) == 1
    assert cache.forget("+34 612-345-678") == 1
    assert cache.forget("cliente-1") == 40
    assert cache.forget("cliente-9") == 0
    after = everything_in(tmp_path)
    assert EMAIL.encode() not in after and b"secreto120" not in after and b"secreto121" not in after
    for number in range(120):
        assert (f"secreto{number} ".encode() in after) == (number % 3 != 1)
    assert b"cliente" not in before


def test_questions_are_not_kept_in_the_clear(tmp_path: Path) -> None:
    model = CachedModel(ScriptedModel(lambda _: "vale", "mini"), cache_of(tmp_path), "key/a", subject="ana")
    ask(model, f"Una pregunta reservada de {EMAIL}")
    kept = everything_in(tmp_path)
    assert b"vale" in kept
    for word in (b"reservada", EMAIL.encode(), b"key/a", b"ana"):
        assert word not in kept


def test_an_answer_under_way_while_its_person_is_forgotten_is_not_kept(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_of(tmp_path, clock)
    question = cache.question("mini", [Message("user", "hola")], CONFIG, subject="ana")
    assert question
    clock.now += 1
    cache.forget("ana")
    clock.now += 1
    answer = Completion("Ana es...", "mini", "stop", Usage(1, 1))
    assert not cache.keep(question, answer) and len(cache) == 0
    later = cache.question("mini", [Message("user", "hola")], CONFIG, subject="ana")
    assert later and cache.keep(later, answer)


def test_many_threads_ask_and_forget_at_once(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.db", SECRET, CacheSettings(most_entries=20))
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            model = CachedModel(counting(), cache, "key/a", subject=f"s{number}")
            for turn in range(15):
                ask(model, f"pregunta {number} {turn % 4}")
                if turn % 7 == 6:
                    cache.forget(f"s{number}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(cache) <= 20


def test_clear_leaves_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    ask(CachedModel(counting(), cache, "key/a"), "x")
    cache.clear()
    assert len(cache) == 0 and b"respuesta" not in everything_in(tmp_path)


class Alike:
    """Says of every two texts that they are alike."""

    name = "alike"

    def embed(self, texts: Sequence[object]) -> Embeddings:
        return Embeddings([[1.0] for _ in texts], 1)


@pytest.mark.parametrize(
    ("kept", "asked", "same"),
    [
        ("What is the salary of Ana Pérez?", "What is the salary of Eva Pérez?", False),
        ("Ana cobra cuánto", "Eva cobra cuánto", False),
        ("A passenger may carry a knife", "A passenger may not carry a knife", False),
        ("Can I carry a knife?", "Can't I carry a knife?", False),
        ("¿Se puede volar con perro?", "¿Se puede volar sin perro?", False),
        ("Does it fly from Madrid to Rome?", "Does it fly from Rome to Madrid?", False),
        ("How heavy may a bag be?", "What can the bag weigh?", True),
        ("¿Cuánto puede pesar la maleta?", "Dime el peso de la maleta.", True),
        ("Fly from Madrid to Rome?", "How do I fly from Madrid to Rome?", False),  # "Fly" may be a name
        ("Is it that I can't fly?", "Am I not able to fly?", True),
    ],
)
def test_names_and_negations_make_another_question_however_alike_they_are(
    tmp_path: Path, kept: str, asked: str, same: bool
) -> None:
    cache = AnswerCache(tmp_path / "a.db", SECRET, CacheSettings(likeness=0.9), Alike(), Clock())
    inner = counting()
    model = CachedModel(inner, cache, "key/a")
    ask(model, kept)
    ask(model, asked)
    assert len(inner.asked) == (1 if same else 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_with_a_note_of_its_own_model_is_kept_with_the_note(tmp_path: Path, streamed: bool) -> None:
    class Noting(ScriptedModel):
        def stream_chat(self, *asked: object) -> Iterator[Chunk]:  # type: ignore[override]
            for chunk in super().stream_chat(*asked):  # type: ignore[arg-type]
                yield replace(chunk, note="openai/o takes no temperature") if chunk.usage else chunk

        def chat(self, *asked: object) -> Completion:  # type: ignore[override]
            return replace(super().chat(*asked), note="openai/o takes no temperature")  # type: ignore[arg-type]

    inner = Noting(lambda _: "vale", "openai/o", local=False)
    router = Router(RouterSettings(model="openai/o"), {"openai/o": inner}, Breakers())
    model = CachedModel(router, cache_of(tmp_path), "key/a")
    assert ask(model, "x", streamed=streamed) == ask(model, "x", streamed=streamed)
    assert len(inner.asked) == 1
    note = model.chat([Message("system", "Sé breve."), Message("user", "x")], CONFIG).note
    assert note.startswith("answered before") and note.endswith("takes no temperature")


def test_what_was_kept_under_a_clock_that_was_ahead_is_not_given(tmp_path: Path) -> None:
    clock = Clock()
    inner = counting()
    model = CachedModel(inner, cache_of(tmp_path, clock), "key/a")
    clock.now += 1e7
    ask(model, "x")
    clock.now -= 1e7
    ask(model, "x")
    assert len(inner.asked) == 2
    ask(model, "x")
    assert len(inner.asked) == 2
    clock.now += 9e6
    ask(model, "x")
    assert len(inner.asked) == 3
