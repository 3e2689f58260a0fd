"""What a key may use: requests and tokens a minute, a budget a day, scopes, models, and until when."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from around import Running, until

from yunque.server.account import Account
from yunque.server.errors import ApiError
from yunque.server.limits import Bucket, Limits
from yunque.workspace import Workspace
from yunque.workspace.api_keys import (
    Terms,
    create_api_key,
    find_api_key,
    key_usage,
    list_api_keys,
    revoke_api_key,
)

Start = Callable[..., Running]


def used(workspace: Workspace) -> tuple[int, int]:
    """Requests and tokens of the only key."""
    connection = workspace.catalog.connection()
    (key,) = list_api_keys(connection)
    usage = key_usage(connection, key.id)
    return usage.requests, usage.tokens


def test_a_bucket_fills_by_its_limit_each_minute_and_may_be_in_debt() -> None:
    bucket = Bucket(60, now=0)
    bucket.take(60, 0)
    assert bucket.level(0) == 0 and bucket.seconds_until(1, 0) == 1
    assert bucket.level(0.5) == 0.5 and bucket.level(600) == 60
    bucket.take(90, 600)
    assert bucket.level(610) == -20 and bucket.seconds_until(1, 610) == 21


def test_past_the_rate_is_429_with_the_time_to_wait(start: Start) -> None:
    running = start(keys_required=True)
    key = running.key(requests_a_minute=3)
    answers = [running.ask(key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    refused = answers[3]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 15 <= int(refused.headers["retry-after"]) <= 20
    # Another key is not concerned, and one without limits has no such headers.
    other = running.ask(running.key())
    assert other.status_code == 200 and not [name for name in other.headers if "ratelimit" in name]


def test_tokens_a_minute_are_taken_as_they_were_used_not_as_they_were_asked_for(start: Start) -> None:
    running = start(keys_required=True)
    key = running.key(tokens_a_minute=100)
    # 10 read and at most 80 to write, of which only 3 are: the rest is there again for the next.
    first = running.ask(key, prompt_tokens=10, max_tokens=80, writes=3)
    assert first.status_code == 200
    assert 85 <= int(running.ask(key, max_tokens=1).headers["x-ratelimit-remaining-tokens"]) <= 88
    refused = running.ask(key, max_tokens=98)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    never = running.ask(key, max_tokens=1000)
    assert never.status_code == 429 and "100 a minute" in never.json()["error"]["message"]
    assert never.headers["x-should-retry"] == "false"


def test_a_budget_is_kept_across_restarts_and_processes(start: Start, workspace: Workspace) -> None:
    running = start(keys_required=True)
    key = running.key(tokens_a_day=20)
    assert running.ask(key, prompt_tokens=5, max_tokens=5).headers["x-ratelimit-remaining-tokens-day"] == "10"
    assert used(workspace) == (1, 10)
    other = start(keys_required=True)
    refused = other.ask(key, max_tokens=15)
    assert refused.status_code == 429 and "10 are left" in refused.json()["error"]["message"]
    assert refused.json()["error"]["type"] == refused.json()["error"]["code"] == "insufficient_quota"
    assert other.ask(key, prompt_tokens=5, max_tokens=5).status_code == 200
    # The first server learns of what was used at the second.
    refused = running.ask(key, max_tokens=1)
    assert refused.status_code == 429 and "used up" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert used(workspace)[1] == 20


def test_many_requests_at_once_never_pass_the_budget(start: Start, workspace: Workspace) -> None:
    running = start(keys_required=True)
    key = running.key(tokens_a_day=100)

    def ask(_: int) -> int:
        return running.ask(key, prompt_tokens=4, max_tokens=6, pause=0.01).status_code

    with ThreadPoolExecutor(24) as pool:
        statuses = list(pool.map(ask, range(24)))
    # What was put by is let go before an answer's end is told, so all that is left can be used.
    while running.ask(key, prompt_tokens=4, max_tokens=6).status_code == 200:
        statuses.append(200)
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) == 10 and used(workspace)[1] == 100


def test_what_a_stream_wrote_before_it_broke_off_is_charged(start: Start, workspace: Workspace) -> None:
    running = start(keys_required=True)
    key = running.key(tokens_a_day=100_000)
    headers = {"authorization": f"Bearer {key}"}
    body = {"prompt_tokens": 7, "max_tokens": 5000, "pause": 0.005, "stream": True}
    with running.client.stream(
        "POST", running.root + "/v1/completions", json=body, headers=headers
    ) as answer:
        lines = answer.iter_lines()
        for _ in range(9):
            next(lines)
    assert running.model.closed.wait(5)
    assert until(lambda: used(workspace)[1] > 0)
    assert used(workspace) == (1, 7 + running.model.written[0]) and running.model.written[0] < 1000
    # Nothing stays put by.
    (key_of,) = list_api_keys(workspace.catalog.connection())
    assert until(lambda: running.service.limits.room(key_of) == 100_000 - used(workspace)[1])


def test_an_answer_that_fails_is_charged_and_lets_go_what_was_put_by(
    start: Start, workspace: Workspace
) -> None:
    running = start(keys_required=True)
    key = running.key(tokens_a_day=1000)
    assert running.ask(key, prompt_tokens=5, max_tokens=50, fails_at=4).status_code == 500
    assert used(workspace) == (1, 8)
    (key_of,) = list_api_keys(workspace.catalog.connection())
    assert running.service.limits.room(key_of) == 992


def test_a_scope_opens_its_paths_and_no_other(start: Start) -> None:
    running = start(keys_required=True)
    keys = {scope: running.key(scopes=(scope,)) for scope in ("models", "generate", "metrics", "embeddings")}

    def get(path: str, scope: str) -> int:
        return running.get(path, authorization=f"Bearer {keys[scope]}").status_code

    assert {scope: get("/v1/models", scope) for scope in keys} == {
        "models": 200,
        "generate": 403,
        "metrics": 403,
        "embeddings": 403,
    }
    assert {scope: get("/metrics", scope) for scope in keys} == {
        "models": 403,
        "generate": 403,
        "metrics": 200,
        "embeddings": 403,
    }
    assert [running.ask(key).status_code for key in keys.values()] == [403, 200, 403, 403]
    refused = running.ask(keys["models"])
    assert refused.json()["error"] == {
        "message": "this API key lacks the scope 'generate' (it has: models)",
        "type": "permission_error",
        "param": None,
        "code": "missing_scope",
    }
    assert get("/v1/nothing", "models") == 404
    assert running.get("/metrics").status_code == 401
    assert running.get("/anything").status_code == 401


def test_a_key_for_one_model_is_for_no_other(start: Start) -> None:
    running = start(keys_required=True)
    key = running.key(models=("model/mini",))
    assert running.ask(key, model="mini").status_code == 200
    refused = running.ask(key, model="other")
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "model_not_allowed"
    assert running.ask(running.key(), model="other").status_code == 200


def test_a_key_that_expired_is_as_wrong_as_an_unknown_one(start: Start) -> None:
    running = start(keys_required=True)
    good, old = (
        running.key(expires="2999-01-01T00:00:00+00:00"),
        running.key(expires="2020-01-01T00:00:00+00:00"),
    )
    assert running.ask(good).status_code == 200
    answers = [running.ask(key) for key in (old, "yq-unknown")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


def test_revoking_ends_new_requests_at_once_and_streams_within_seconds(
    start: Start, workspace: Workspace
) -> None:
    running, other = start(keys_required=True), start(keys_required=True)
    key = running.key()
    headers = {"authorization": f"Bearer {key}"}
    body = {"max_tokens": 100_000, "pause": 0.01, "stream": True}
    with running.client.stream(
        "POST", running.root + "/v1/completions", json=body, headers=headers, timeout=10
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: word")
        with workspace.catalog.transaction() as connection:
            revoke_api_key(connection, list_api_keys(connection)[0].id)
        assert [server.ask(key).status_code for server in (running, other)] == [401, 401]
        rest = list(lines)
    assert '"code": "invalid_api_key"' in "".join(rest) and len(rest) < 2000
    assert running.model.closed.wait(5)


def test_an_account_of_nobody_has_no_limits() -> None:
    account = Account()
    account.reserve(10**9, 10**9)
    account.check_model("model", "any")
    account.settle()
    assert account.room is None and account.is_settled


def test_what_is_put_by_for_others_is_told_apart_from_what_is_used_up(workspace: Workspace) -> None:
    limits = Limits(workspace)
    with workspace.catalog.transaction() as connection:
        key, _ = create_api_key(connection, "k", Terms(tokens_a_day=10))
    limits.reserve(key, 8)
    with pytest.raises(ApiError, match="put by for its requests that are running") as caught:
        limits.reserve(key, 5)
    assert caught.value.headers["Retry-After"] == "1"
    with pytest.raises(ApiError, match="2 are left") as caught:
        limits.reserve(key, 11)
    assert caught.value.code == "insufficient_quota"


def test_the_key_that_came_is_found_whatever_other_keys_there_are(workspace: Workspace) -> None:
    with workspace.catalog.transaction() as connection:
        made = [create_api_key(connection, f"k{n}") for n in range(20)]
        assert all(find_api_key(connection, key) == info for info, key in made)
        assert find_api_key(connection, "") is None


def test_limits_hold_in_many_threads(workspace: Workspace) -> None:
    limits = Limits(workspace)
    with workspace.catalog.transaction() as connection:
        key, _ = create_api_key(connection, "k", Terms(tokens_a_day=500, tokens_a_minute=10**6))
    done: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        for _ in range(20):
            account = Account()
            try:
                account.admit(key, limits)
                account.reserve(3, 7)
            except ApiError:
                continue
            account.wrote(2)
            account.settle()
            with lock:
                done.append(5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    usage = key_usage(workspace.catalog.connection(), key.id)
    assert usage.tokens == sum(done) <= 500
    assert limits.room(key) == 500 - usage.tokens  # nothing is put by any more


def test_a_cut_reaches_who_waits_for_it_and_who_comes_later() -> None:
    async def run() -> list[Any]:
        account, heard = Account(), list[Any]()
        error = ApiError(503, "the end")
        with account.on_cut(heard.append):
            account.cut(error)
        with account.on_cut(heard.append):
            pass
        return heard

    assert len(asyncio.run(run())) == 2
