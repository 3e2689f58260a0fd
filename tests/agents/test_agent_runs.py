"""Agents: plan, tools, limits, checks, logs and replays. The models are scripted: what is tried here is what the code
does with whatever a model says."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from agents_at_work import (
    FINE,
    Calling,
    Unpriced,
    call,
    order,
    plan,
    scripted,
    simple,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yunque.apps.agents import (
    Agent,
    AgentRunner,
    CallContext,
    Limits,
    function_tool,
    numbers_are_in_results,
)
from yunque.apps.agents.other_tools import search_tool
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable, ScriptedModel
from yunque.llm.scripted import Calls, Reply
from yunque.llm.under_way import under_way


def test_it_plans_solves_each_part_with_tools_composes_and_checks(runner: AgentRunner) -> None:
    model = scripted(
        plan("state of 7", "state of 8"),
        call("order", number=7), "7 is sent",
        call("order", number=8), "8 is paid",
        "7 is sent and 8 is paid.",
        FINE,
    )  # fmt: skip
    answer = runner.run(Agent("shop", model, [function_tool(order)]), "How are the orders 7 and 8?")
    assert (answer.text, answer.status, answer.checked) == ("7 is sent and 8 is paid.", "answered", True)
    assert answer.plan == ("state of 7", "state of 8")
    assert [json.loads(record.text)["state"] for record in answer.results] == ["sent", "paid"]
    assert answer.spent.steps == 7 and answer.language == "en"
    roles = [message.role for message in model.asked[5]]
    assert roles == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_a_claim_that_is_not_borne_out_is_answered_again_and_told_if_it_stays(runner: AgentRunner) -> None:
    replies: list[Reply] = [call("order", number=7), "It costs 99.", "It costs 120.5."]
    agent = replace(simple(scripted(*replies), function_tool(order)), check=numbers_are_in_results)
    answer = runner.run(agent, "What does 7 cost?")
    assert (answer.text, answer.checked, answer.note) == ("It costs 120.5.", True, "")
    stubborn = replace(agent, model=scripted(replies[0], "It costs 99.", "It costs 98."))
    answer = runner.run(stubborn, "¿Cuánto cuesta el pedido 7?")
    assert answer.checked is False
    assert answer.note == "No todo lo que dice la respuesta se pudo comprobar: 98 is in no result"


def test_a_tool_that_fails_is_told_to_the_model_and_nothing_crashes(runner: AgentRunner) -> None:
    def broken() -> str:
        """Fails."""
        raise RuntimeError("no connection")

    model = scripted(
        call("order", number=5),
        call("order", number="seven"),
        call("nobody"),
        Calls((("order", "{not json"),)),
        Calls((("order", '{"number": NaN}'),)),
        call("broken"),
        "Nothing worked.",
    )
    answer = runner.run(simple(model, function_tool(order), function_tool(broken)), "How is order 5?")
    assert answer.text == "Nothing worked."
    said = [record.text for record in answer.results]
    assert said[0] == "there is no order 5"
    assert '"seven" is not of type "integer"' in said[1]
    assert "there is no tool 'nobody'; there are: order, broken" in said[2]
    assert said[3] == said[4] == "the arguments are not JSON"
    assert said[5] == "RuntimeError: no connection"
    assert all(record.failed for record in answer.results)
    assert all("error: " in message.content for message in model.asked[-1] if message.role == "tool")
    sent = [one.arguments for message in model.asked[-1] for one in message.tool_calls]
    assert all(isinstance(json.loads(one), dict) for one in sent)


def test_a_tool_that_exits_fails_alone_and_its_prints_do_not_reach_standard_output(
    runner: AgentRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(code: int) -> str:
        """Leaves."""
        print("printed by the tool")
        sys.exit(code)

    def ask_first(arguments: dict[str, object]) -> bool:
        print("printed by the rule")
        sys.exit(arguments["code"])  # type: ignore[call-overload]

    model = scripted(call("leave", code=3), "It left.")
    answer = runner.run(simple(model, function_tool(leave)), "Leave")
    assert (answer.text, answer.status) == ("It left.", "answered")
    assert (answer.results[0].failed, answer.results[0].text) == (True, "it called sys.exit(3)")
    ruled = function_tool(leave, approval=ask_first)
    waiting = runner.run(simple(scripted(call("leave", code=4)), ruled), "Leave")
    assert (
        waiting.pending is not None and waiting.pending.reason == "the rule for its approval failed (Exited)"
    )
    print("ours")
    said = capsys.readouterr()
    assert said.out == "ours\n"
    assert said.err == "printed by the tool\nprinted by the rule\n"

    def interrupted() -> str:
        """Interrupted."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(simple(scripted(call("interrupted")), function_tool(interrupted)), "Stop")


def test_a_run_knows_where_its_agent_comes_from(runner: AgentRunner) -> None:
    agent = simple(scripted("One.", "Two."))
    named = runner.run(agent, "Question?", origin="app/shop@3")
    bare = runner.run(agent, "Question?")
    assert runner.journal.run(named.run).origin == "app/shop@3"
    assert runner.journal.run(named.run).as_dict()["origin"] == "app/shop@3"
    assert runner.journal.run(bare.run).origin == ""
    old = replace(runner.journal.run(bare.run), begun={"question": "Question?"})
    assert old.origin == "", "a run of an earlier Yunque says nothing"


def test_a_repeated_call_gives_the_earlier_result_and_the_third_ends_the_run(runner: AgentRunner) -> None:
    made: list[int] = []

    def look(number: int) -> int:
        """Looks."""
        made.append(number)
        return number * 2

    same = call("look", number=4)
    model = scripted(same, call("look", number=5), same, same, "never")
    answer = runner.run(simple(model, function_tool(look)), "Mira el 4, por favor.")
    assert made == [4, 5]
    assert (answer.status, answer.limit) == ("limit", "repeated")
    assert answer.text == "No he terminado: el modelo repetía la misma llamada una y otra vez."
    repeated = model.asked[3][-1].content
    assert repeated.startswith("You made this very call before.") and "8" in repeated


def test_steps_seconds_and_money_end_in_an_honest_answer(runner: AgentRunner) -> None:
    def slow(number: int) -> int:
        """Slow."""
        time.sleep(0.06)
        return number

    def many() -> ScriptedModel:
        replies = iter(range(100))
        return ScriptedModel(lambda _: call("slow", number=next(replies)))

    def ended(**limits: object) -> tuple[str | None, str]:
        agent = simple(
            many(),
            function_tool(slow),
            limits=Limits(**limits),
            price=lambda usage: usage.prompt_tokens / 1e3,
        )  # type: ignore[arg-type]
        answer = runner.run(agent, "Count to a hundred, please.")
        assert answer.status == "limit"
        return answer.limit, answer.text

    assert ended(steps=3) == ("steps", "I did not finish: the limit of 3 steps was reached.")
    assert ended(steps=None, seconds=0.1) == (
        "seconds",
        "I did not finish: the limit of 0.1 seconds was reached.",
    )
    assert ended(usd=0.5)[0] == "usd"
    assert ended(tokens=900)[0] == "tokens"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 6000),
    words=st.lists(st.integers(0, 200), max_size=12),
    longest=st.integers(1, 300),
    planned=st.booleans(),
)
def test_the_budget_of_tokens_is_never_passed(
    runner: AgentRunner, limit: int, words: list[int], longest: int, planned: bool
) -> None:
    def say(count: int) -> str:
        """Says words."""
        return "word " * count

    replies: list[Reply] = [
        call("say", count=count) if number % 3 else "w " * count for number, count in enumerate(words)
    ]
    config = GenerationConfig(max_new_tokens=longest)
    model = scripted(*replies, *["end"] * 30)
    agent = Agent(
        "a",
        model,
        [function_tool(say)],
        limits=Limits(tokens=limit, steps=20),
        plan=planned,
        generation=config,
    )
    answer = runner.run(agent, "Say many words.")
    assert answer.spent.tokens <= limit
    assert answer.status in ("answered", "limit")
    priced = replace(
        agent,
        model=Unpriced(script=[*replies, *["end"] * 30]),
        limits=Limits(tokens=None, usd=limit / 1e3, steps=20),
        price=lambda usage: usage.prompt_tokens / 1e3 + usage.completion_tokens / 2e2,
    )
    answer = runner.run(priced, "Say many words.")
    assert answer.spent.usd <= limit / 1e3 + 1e-9
    assert answer.spent.usd > 0 or answer.limit == "usd"


def test_a_remote_model_is_told_how_long_it_may_take(runner: AgentRunner) -> None:
    left: list[float | None] = []

    def script(said: Sequence[Message]) -> str:
        call = under_way()
        assert call is not None and len(said) == 2
        left.append(call.left())
        time.sleep(0.1)
        raise ModelUnavailable("took too long", again=True)

    agent = simple(ScriptedModel(script, "far", local=False), limits=Limits(seconds=0.1))
    answer = runner.run(agent, "Hello, are you there?")
    assert (answer.status, answer.limit) == ("limit", "seconds")
    assert left[0] is not None and left[0] <= 0.1


def test_money_needs_a_price(runner: AgentRunner) -> None:
    agent = simple(scripted("hi", local=False), limits=Limits(usd=1.0))
    with pytest.raises(UserError, match=r"limits.usd cannot be kept, for the price of scripted is not known"):
        runner.run(agent, "Hello")


def test_every_step_is_kept_and_a_replay_tells_where_it_differs(runner: AgentRunner) -> None:
    model = scripted(call("order", number=7), "It was sent.")
    agent = simple(model, function_tool(order), instructions="Be brief.")
    answer = runner.run(agent, "How is order 7?")
    steps = runner.steps(answer.run)
    assert [step.kind for step in steps] == ["model", "tool", "model"]
    assert steps[1].content["asked"] == {"call": "c1", "tool": "order", "arguments": {"number": 7}}
    assert len(steps[2].content["new_messages"]) == 2, "only what is new is kept of each conversation"
    same = runner.replay(agent, answer.run)
    assert same.same and same.text == "It was sent." and same.steps == 3
    assert len(model.asked) == 2, "no model was asked"
    other = runner.replay(replace(agent, instructions="Be long."), answer.run)
    assert not other.same and other.text == "It was sent."
    assert (other.differences[0].step, other.differences[0].what) == (0, "asks with other messages")
    checking = runner.replay(replace(agent, check=True), answer.run)
    assert checking.differences[-1].what == "goes on where the record ends"
    with pytest.raises(UserError, match="cannot go on: at step 0 the agent asks with other messages"):
        runner.resume(replace(agent, instructions="Be long."), answer.run)


def test_a_model_that_is_away_fails_honestly_and_the_run_can_go_on(runner: AgentRunner) -> None:
    model = scripted(call("order", number=7), ModelUnavailable("the model is busy"), "It was sent.")
    agent = simple(model, function_tool(order))
    answer = runner.run(agent, "How is order 7?")
    assert (answer.status, answer.text) == ("failed", "I cannot answer: the model is busy")
    assert runner.resume(agent, answer.run).text == "It was sent."


def test_a_tool_that_hangs_is_left_behind(runner: AgentRunner) -> None:
    def hang() -> str:
        """Hangs."""
        time.sleep(5)
        return "late"

    began = time.monotonic()
    answer = runner.run(
        simple(scripted(call("hang"), "It hangs."), function_tool(hang, timeout=0.1)), "Try it"
    )
    assert answer.results[0].text == "no answer within 0.1 seconds" and time.monotonic() - began < 4


def test_a_search_gives_passages_as_data(runner: AgentRunner) -> None:
    found = search_tool(lambda query, k: [{"file": "a.md", "text": f"{query} {k}"}])
    model = scripted(call("search", query="bags", k=2), call("search", query=""), "end")
    answer = runner.run(simple(model, found), "Bags?")
    assert json.loads(answer.results[0].text) == [{"file": "a.md", "text": "bags 2"}]
    assert answer.results[1].failed


def test_tools_are_described_by_hints_and_docstring() -> None:
    def book(day: str, seats: int = 1, note: str | None = None, *, call: CallContext) -> str:
        """Books a table.

        It takes a while.

        :param day: as 2026-11-21
        :param seats: how many
        """
        return f"{day} {seats} {note} {call.call}"

    tool = function_tool(book)
    assert tool.description == "Books a table. It takes a while."
    assert tool.parameters["required"] == ["day"]
    assert tool.parameters["properties"]["seats"] == {
        "default": 1,
        "description": "how many",
        "type": "integer",
    }
    assert tool.fault({"day": "x", "seats": 1.5}) == 'seats: 1.5 is not of type "integer"'
    assert tool.fault({"day": "x", "other": 1}) is not None and tool.fault({"day": "x"}) is None
    untyped: Callable[..., object] = lambda thing: thing  # noqa: E731

    def shadowing(json: str, copy: int, schema: str = "x", model_name: str = "") -> str:
        """Names that pydantic has too."""
        return f"{json}{copy}{schema}{model_name}"

    shadows = function_tool(shadowing)
    assert list(shadows.parameters["properties"]) == ["json", "copy", "schema", "model_name"]
    assert shadows.run({"json": "a", "copy": 2}, CallContext("r", "c", "k", 1.0, Limits())) == "a2x"
    with pytest.raises(UserError, match="its parameter thing has no type"):
        function_tool(untyped, name="untyped")


def test_a_tiny_local_model_writes_calls_that_fit_by_its_grammar(runner: AgentRunner) -> None:
    import torch

    from yunque.llm import open_model
    from yunque.model import Llama, LlamaConfig, save_model
    from yunque.tokenizer import Tokenizer

    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(["An order of the shop. Un pedido de la tienda."] * 3, vocab_size=280)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {
        "bos_token_id": tokenizer.end_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, num_key_value_heads=1, head_dim=16, max_position_embeddings=16_384,
        tie_word_embeddings=True, **shape, **ends,
    )  # fmt: skip
    files = {
        **save_model(Llama(config, torch.Generator().manual_seed(0))),
        "tokenizer.json": tokenizer.to_json().encode(),
    }
    runner.workspace.put("model", "roomy", files)
    model = Calling(open_model(runner.workspace, "roomy"))

    def f(a: bool) -> str:
        """F."""
        return "ok" if a else "no"

    generation = GenerationConfig(max_new_tokens=200, temperature=1.0, seed=1)
    agent = Agent(
        "tiny", model, [function_tool(f)], limits=Limits(steps=8), generation=generation, check=False
    )  # type: ignore[arg-type]
    answer = runner.run(agent, "f?", language="en")
    # Random weights say nothing sensible. But the plan has its form, the call fits its schema and is made, and what
    # is said is counted.
    assert answer.status == "answered" and len(answer.plan) >= 1
    assert [(record.tool, record.failed) for record in answer.results] == [("f", False)]
    assert answer.results[0].text in ("ok", "no")
    assert 3 <= answer.spent.steps <= 8 and answer.spent.usd == 0 and answer.spent.tokens > 500
    assert runner.replay(agent, answer.run).same
