"""Conversations that are kept: by policy, sealed, found, exported, erased so that no byte is left."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.apps.memory import Memory, MemoryPolicy, Summarize, read_policy
from yunque.cli.memory import app
from yunque.errors import UserError
from yunque.llm import Message, ModelUnavailable, ScriptedModel, ToolCall
from yunque.workspace import Workspace

MONTH = MemoryPolicy(keep="days", days=30)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def bytes_of(workspace: Workspace) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(workspace.root.rglob("*")) if path.is_file())


def user(text: str) -> Message:
    return Message("user", text)


def test_roles_calls_and_results_come_back_as_they_were(workspace: Workspace) -> None:
    said = [
        Message("system", "Be brief."),
        user("¿Dónde está mi maleta? 🧳\x00\ud800"),
        Message("assistant", "", (ToolCall("c1", "find", '{"a": 1}'),)),
        Message("tool", "in Vigo", tool_call_id="c1"),
        Message("assistant", "En Vigo."),
    ]
    memory = Memory.open(workspace, MONTH)
    id = memory.begin("ana", "app/equipaje")
    memory.add(id, *said[:2])
    memory.add(id, *said[2:])
    again = Memory.open(workspace, MONTH)
    assert [kept.message for kept in again.messages(id)] == said
    assert [kept.number for kept in again.messages(id)] == [0, 1, 2, 3, 4]
    (listed,) = again.conversations("ana")
    assert (listed.id, listed.app, listed.messages) == (id, "app/equipaje", 5)
    assert again.conversations("luis") == []


@pytest.mark.parametrize("keep", ["none", "session"])
def test_what_is_not_to_be_kept_is_on_no_disk(workspace: Workspace, keep: str) -> None:
    memory = Memory.open(workspace, read_policy(keep, "x"))
    id = memory.begin("ana")
    memory.add(id, user("palabra-secreta"))
    assert [kept.message.content for kept in memory.messages(id)] == (
        ["palabra-secreta"] if keep == "session" else []
    )
    assert b"palabra-secreta" not in bytes_of(workspace)
    assert not (workspace.root / "memory.db").exists()
    assert len(memory.search("palabra")) == (keep == "session")
    if keep == "session":
        assert memory.forget("ana") == 1
        with pytest.raises(UserError, match="there is no conversation"):
            memory.messages(id)


def test_a_session_lets_go_of_what_nobody_uses_and_of_the_oldest_beyond_a_number(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = [datetime(2026, 11, 21, tzinfo=UTC)]
    memory = Memory(workspace, MemoryPolicy(keep="session"), lambda: time[0])
    old, used = memory.begin("ana"), memory.begin("ana")
    time[0] += timedelta(hours=20)
    memory.add(used, user("still here"))
    time[0] += timedelta(hours=3, minutes=59)
    assert {one.id for one in memory.conversations()} == {old, used}
    time[0] += timedelta(minutes=1)
    with pytest.raises(UserError, match="a day after its last message"):
        memory.messages(old)
    assert [one.id for one in memory.conversations()] == [used]
    time[0] += timedelta(hours=20)
    assert memory.expire() == 1 and not memory._session
    monkeypatch.setattr("yunque.apps.memory.memory.MOST_IN_SESSION", 3)
    first, second, third = (memory.begin() for _ in range(3))
    memory.add(first, user("used again"))
    fourth = memory.begin()
    assert set(memory._session) == {third, first, fourth}, "the one that was used the longest ago is gone"
    with pytest.raises(UserError):
        memory.add(second, user("gone"))


def test_nothing_that_was_said_lies_in_the_clear(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    id = memory.begin("ana@example.com", "app/equipaje")
    memory.add(id, user("mi tarjeta es 4111 1111 1111 1111"))
    for word in (b"tarjeta", b"4111", b"ana@example.com", b"equipaje"):
        assert word not in bytes_of(workspace)
    assert id.encode() in bytes_of(workspace), "the control: what is not sealed is found"


def test_an_erased_conversation_leaves_no_byte_no_key_and_cannot_be_added_to(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    gone, stays = memory.begin("ana"), memory.begin("luis")
    for id in (gone, stays):
        memory.add(id, *[user(f"frase {n}") for n in range(40)])
    rows = memory._database.read("SELECT conversation, sealed FROM messages")  # type: ignore[union-attr]
    sealed = {id: [row["sealed"] for row in rows if row["conversation"] == id] for id in (gone, stays)}
    assert all(one in bytes_of(workspace) for one in [*sealed[gone], *sealed[stays]])
    key = (workspace.root / "keys" / f"memory-{gone}").read_bytes()
    assert memory.erase(gone)
    left = bytes_of(workspace)
    assert not any(one in left for one in sealed[gone]) and key not in left
    assert all(one in left for one in sealed[stays])
    for attempt in (
        lambda: memory.add(gone, user("x")),
        lambda: memory.messages(gone),
        lambda: memory.erase(gone),
    ):
        with pytest.raises(UserError, match="was erased or has expired"):
            attempt()
    assert not (workspace.root / "keys" / f"memory-{gone}").exists()
    assert len(memory.messages(stays)) == 40


def test_a_row_without_its_key_and_a_row_put_in_anothers_place_cannot_be_read(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    one, other = memory.begin(), memory.begin()
    memory.add(one, user("uno"), user("dos"))
    memory.add(other, user("tres"))
    database = memory._database
    assert database is not None
    first = database.read("SELECT sealed FROM messages WHERE conversation = ? AND number = 0", (one,))[0][
        "sealed"
    ]
    database.write("UPDATE messages SET sealed = ? WHERE conversation = ? AND number = 1", (first, one))
    with pytest.raises(UserError, match="was erased"):
        memory.messages(one)
    (workspace.root / "keys" / f"memory-{other}").unlink()
    with pytest.raises(UserError, match="was erased"):
        memory.messages(other)
    assert [found.id for found in memory.conversations()] == [one]
    assert Memory.open(workspace, MONTH).conversations() != [] and memory.expire() == 0
    assert database.read("SELECT id FROM conversations WHERE id = ?", (other,)) == [], (
        "what has no key is swept"
    )


def test_a_person_is_forgotten_in_all_conversations_and_nobody_else(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    ids = [memory.begin(subject) for subject in ("ana", "luis", "ana", "")]
    for id in ids:
        memory.add(id, user("hola"))
    assert memory.forget("ana") == 2
    assert {one.id for one in memory.conversations()} == {ids[1], ids[3]}
    assert memory.forget("") == 0 and memory.forget("nobody") == 0


def test_what_has_expired_is_not_shown_and_is_erased(workspace: Workspace) -> None:
    time = [datetime(2026, 11, 21, tzinfo=UTC)]
    memory = Memory(workspace, MemoryPolicy(keep="days", days=2), lambda: time[0])
    old, new = memory.begin("ana"), memory.begin("ana")
    memory.add(old, user("viejo"))
    time[0] += timedelta(days=1)
    memory.add(new, user("nuevo"))
    time[0] += timedelta(days=1, seconds=1)
    assert [one.id for one in memory.conversations()] == [new]
    assert [found.conversation for found in memory.search("viejo nuevo")] == [new]
    for attempt in (lambda: memory.messages(old), lambda: memory.add(old, user("otra vez"))):
        with pytest.raises(UserError, match="has expired"):
            attempt()
    assert (workspace.root / "keys" / f"memory-{old}").exists()
    memory.begin()  # ... sweeps, an hour after the last time
    assert not (workspace.root / "keys" / f"memory-{old}").exists()
    time[0] += timedelta(days=1)
    Memory(workspace, MemoryPolicy(), lambda: time[0])
    assert memory.expire() >= 1 and memory.conversations("ana") == []


def test_conversations_are_searched_whatever_their_accents_and_endings(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    id = memory.begin("ana")
    memory.add(
        id, user("La facturación de las maletas cierra pronto"), Message("assistant", "Cierra a las ocho")
    )
    other = memory.begin("luis")
    memory.add(other, user("Quiero un café"))
    (found,) = memory.search("facturacion")
    assert (found.conversation, found.number, found.role) == (id, 0, "user")
    assert "facturación" in found.snippet
    assert {one.number for one in memory.search("cerrar maleta cierran")} >= {0}
    assert memory.search("cafe", subject="ana") == [] and len(memory.search("cafe")) == 1
    for odd in ("", "???", '"', "AND OR NOT", "text:", "a*b", "NEAR(", "-x"):
        assert memory.search(odd) == []
    assert memory.search("nada de esto aparece nunca jamas") == []


def test_two_threads_that_add_at_once_lose_nothing(workspace: Workspace) -> None:
    id = Memory.open(workspace, MONTH).begin()

    def add(name: str) -> None:
        memory = Memory.open(workspace, MONTH)
        for number in range(15):
            memory.add(id, user(f"{name} {number}"))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [kept.message.content for kept in Memory.open(workspace, MONTH).messages(id)]
    assert sorted(said) == sorted(f"{name} {number}" for name in "abc" for number in range(15))


def test_what_is_erased_while_others_add_to_it_stays_erased(workspace: Workspace) -> None:
    id = Memory.open(workspace, MONTH).begin("ana")
    begun, refused = threading.Event(), list[str]()

    def add() -> None:
        memory = Memory.open(workspace, MONTH)
        try:
            for number in range(10_000):
                memory.add(id, user(f"n {number}"))
                if number == 5:
                    begun.set()
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    memory = Memory.open(workspace, MONTH)
    memory.erase(id)
    for thread in threads:
        thread.join()
    assert refused == [f"the conversation {id} was erased or has expired"] * 2
    for table in ("messages", "conversations"):
        assert memory._database.read(f"SELECT * FROM {table}") == []  # type: ignore[union-attr]
    assert not (workspace.root / "keys" / f"memory-{id}").exists()


@pytest.mark.parametrize("keep", ["days", "session"])
@pytest.mark.parametrize("originals", ["keep", "drop"])
def test_a_summary_is_kept_and_stands_for_its_messages(
    workspace: Workspace, keep: str, originals: str
) -> None:
    policy = read_policy({"keep": keep, "days": 30, "originals": originals} if keep == "days" else
                         {"keep": keep, "originals": originals}, "x")  # fmt: skip
    memory = Memory.open(workspace, policy)
    id = memory.begin()
    for number in range(20):
        memory.add(id, user(f"question {number} " + "long " * 20), Message("assistant", f"answer {number}"))
    model = ScriptedModel(lambda said: f"summary {said[-1].content.count('user:')}", "short")
    system = (Message("system", "Be brief."),)
    shown = memory.window(id, 400, Summarize(model), system=system)
    assert shown.fresh and shown.summary is not None and len(model.asked) == 1
    assert shown.messages[0] == system[0]
    assert shown.messages[1].content.startswith("[Summary of ") and "question" in shown.messages[1].content
    assert shown.messages[-1].content == "answer 19"
    about = memory.conversation(id)
    assert about.summary is not None
    first_kept = about.summary.last + 1
    assert about.summary.first == 0 and about.messages == (40 - first_kept if originals == "drop" else 40)
    again = memory.window(id, 400, Summarize(model), system=system)
    assert len(model.asked) == 1 and not again.fresh, "the summary that is kept is used"
    assert again.messages == shown.messages
    for number in range(20, 30):
        memory.add(id, user(f"question {number} " + "long " * 20), Message("assistant", f"answer {number}"))
    later = memory.window(id, 400, Summarize(model), system=system)
    assert later.fresh and len(model.asked) == 2
    asked = model.asked[1][0].content
    assert "summary" in asked and "question 0 " not in asked, "it goes on from the summary before"
    newer = memory.conversation(id).summary
    assert newer is not None and newer.first == 0 and newer.last > about.summary.last
    assert [kept.number for kept in memory.messages(id)][-1] == 59


def test_originals_that_were_dropped_leave_no_byte(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MemoryPolicy(keep="days", days=3, originals="drop"))
    id = memory.begin()
    for number in range(20):
        memory.add(id, user(f"question {number} " + "long " * 20), Message("assistant", f"answer {number}"))
    rows = memory._database.read("SELECT sealed FROM messages ORDER BY number")  # type: ignore[union-attr]
    memory.window(id, 300, Summarize(ScriptedModel(["all said"], "short")))
    kept = len(memory.messages(id))
    left = bytes_of(workspace)
    assert [row["sealed"] in left for row in rows] == [False] * (40 - kept) + [True] * kept


def test_a_model_that_is_away_only_leaves_out_what_does_not_fit(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    id = memory.begin()
    for number in range(20):
        memory.add(id, user(f"question {number} " + "long " * 20))
    shown = memory.window(id, 300, Summarize(ScriptedModel([ModelUnavailable("gone")], "away")))
    assert shown.summary is None and shown.left_out > 0
    assert shown.messages[0].content.startswith(
        f"[{shown.left_out} earlier messages of this conversation are not shown]"
    )


def test_policies_are_read_and_mistakes_are_told() -> None:
    assert read_policy(None, "x").keep == "none"
    assert read_policy({"days": 7}, "x") == MemoryPolicy(keep="days", days=7)
    for wrong in (
        "forever",
        3,
        {"days": 0},
        {"keep": "days"},
        {"keep": "session", "days": 2},
        {"dais": 3},
        ["none"],
    ):
        with pytest.raises(UserError, match=r"app.yaml: memory"):
            read_policy(wrong, "app.yaml: memory")


def test_the_command_lists_shows_searches_exports_and_erases(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))
    memory = Memory.open(workspace, MONTH)
    ids = [memory.begin(subject, "app/equipaje") for subject in ("ana", "luis")]
    memory.add(ids[0], user("¿Cuánto pesa mi maleta?"), Message("assistant", "23 kg [1]"))
    memory.add(ids[1], user("Hola"))

    def ran(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert {one["id"] for one in json.loads(ran("list", "--json"))} == set(ids)
    assert ids[0] in ran("list", "--subject", "ana") and ids[1] not in ran("list", "--subject", "ana")
    assert "¿Cuánto pesa mi maleta?" in ran("show", ids[0]) and "23 kg [1]" in ran("show", ids[0])
    assert json.loads(ran("search", "maletas", "--json"))[0]["conversation"] == ids[0]
    (line,) = ran("export", ids[0]).splitlines()
    assert [one["role"] for one in json.loads(line)["messages"]] == ["user", "assistant"]
    ran("export", "--to", str(tmp_path / "all.jsonl"))
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o777 == 0o600
    assert json.loads(ran("erase", "--subject", "ana", "--json"))["erased"] == [ids[0]]
    ran("erase", ids[1])
    assert json.loads(ran("list", "--json")) == []


def test_a_remote_model_that_summarizes_sees_marks(workspace: Workspace) -> None:
    memory = Memory.open(workspace, MONTH)
    id = memory.begin()
    for number in range(20):
        memory.add(id, user(f"{number}: write to ana@example.com, " + "please " * 20))
    model = ScriptedModel(["write to [EMAIL-1]"], "far", local=False)
    shown = memory.window(id, 400, Summarize(model))
    assert shown.summary is not None and shown.summary.text == "write to ana@example.com"
    assert "ana@example.com" not in str(model.asked)
