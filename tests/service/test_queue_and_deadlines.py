"""The queue before the workers, deadlines, and what every request leaves in the log and the metrics."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from around import Model, Running, make_app, until
from fastapi.testclient import TestClient

from yunque.server.errors import ApiError
from yunque.server.gate import needs_key, scope_of
from yunque.server.service import ServeOptions, Service
from yunque.server.workers import Workers
from yunque.workspace import Workspace

Start = Callable[..., Running]


def test_many_requests_run_at_once(start: Start) -> None:
    running = start(workers=16)
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: running.ask(max_tokens=5, pause=0.1), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert time.monotonic() - started < 4  # one after the other: 8 s


def test_past_the_bound_of_the_queue_is_429_with_retry_after(start: Start) -> None:
    running = start(workers=1, most_waiting=2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.ask(max_tokens=1, pause=1.0), range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert running.metric("refused_total") == 5
    assert running.ask().status_code == 200


def test_who_waits_and_hangs_up_leaves_the_queue(start: Start) -> None:
    running = start(workers=1, most_waiting=1)
    holder = threading.Thread(target=lambda: running.ask(max_tokens=20, pause=0.1))
    holder.start()
    assert until(lambda: running.model.begun == 1)
    waiting = running.connect()
    running.begin(waiting)
    assert until(lambda: running.metric("waiting_requests") == 1)
    assert running.ask().status_code == 429
    waiting.close()
    assert until(lambda: running.metric("waiting_requests") == 0)
    assert running.ask().status_code == 200  # there is a place again
    holder.join()
    assert running.model.begun == 2


def test_the_time_a_request_was_given_ends_it(start: Start) -> None:
    running = start(timeout=20)
    started = time.monotonic()
    answer = running.ask(max_tokens=1000, pause=0.05, headers={"x-request-timeout": "0.4"})
    assert answer.status_code == 504 and 0.3 < time.monotonic() - started < 3
    assert answer.json()["error"]["code"] == "timeout" and "0.4 seconds" in answer.json()["error"]["message"]
    assert running.model.closed.wait(2)
    assert running.ask(max_tokens=2, pause=0.05, headers={"x-request-timeout": "5"}).status_code == 200


def test_in_a_stream_the_end_of_time_is_an_event(start: Start) -> None:
    running = start(timeout=0.5)
    answer = running.ask(max_tokens=1000, pause=0.05, stream=True)
    assert answer.status_code == 200
    assert answer.text.startswith("data: word") and '"code": "timeout"' in answer.text
    # A client cannot give itself more than the server does.
    assert running.ask(max_tokens=60, pause=0.05, headers={"x-request-timeout": "600"}).status_code == 504


def test_waiting_counts_as_time(start: Start) -> None:
    running = start(workers=1)
    holder = threading.Thread(target=lambda: running.ask(max_tokens=1, pause=1.5))
    holder.start()
    assert until(lambda: running.model.begun == 1)
    started = time.monotonic()
    assert running.ask(headers={"x-request-timeout": "0.3"}).status_code == 504
    assert time.monotonic() - started < 1.2
    holder.join()
    assert running.model.begun == 1


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "soon", "", "1e400x"])
def test_a_time_that_is_none_is_refused(start: Start, asked: str) -> None:
    answer = start().ask(headers={"x-request-timeout": asked})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "X-Request-Timeout"


def test_a_worker_that_nobody_needs_holds_nothing() -> None:
    import gc
    import weakref

    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    def start() -> Iterator[int]:
        big = Big()
        held.append(weakref.ref(big))
        yield 1
        yield id(big)

    async def run() -> None:
        workers = Workers(2, 2)
        assert len([item async for item in workers.iterate(start)]) == 2

    asyncio.run(run())
    gc.collect()
    assert held[0]() is None


def test_what_a_generator_raises_comes_out_and_a_timeout_of_the_engine_is_one_of_the_request() -> None:
    def failing(error: Exception) -> Callable[[], Iterator[int]]:
        def start() -> Iterator[int]:
            yield 1
            raise error

        return start

    async def run(error: Exception) -> None:
        async for _ in Workers(1, 1).iterate(failing(error)):
            pass

    with pytest.raises(KeyError):
        asyncio.run(run(KeyError("x")))
    with pytest.raises(ApiError) as caught:
        asyncio.run(run(TimeoutError()))
    assert caught.value.status == 504


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "yunque.server"]


def test_every_request_has_an_id_and_one_line_in_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(keys_required=True, workers=1, most_waiting=0)
    key = running.key(requests_a_minute=3)
    with caplog.at_level(logging.INFO, logger="yunque.server"):
        answers = [
            running.ask(key, prompt_tokens=4, max_tokens=2),
            running.ask("yq-wrong"),
            running.ask(key, max_tokens=5, fails_at=2),
            running.get("/Ana%20Garc%C3%ADa", authorization=f"Bearer {key}"),
            running.ask(key),
            running.client.request("ANA", running.root + "/v1/models", headers={"authorization": "Bearer x"}),
        ]
        connection = running.connect()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(1000)
        connection.close()
        assert until(lambda: len(lines_of(caplog)) == 8)  # seven, and where the failure was
    lines = lines_of(caplog)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 6 and all(re.fullmatch(r"req_[0-9a-f]{24}", one) for one in ids)
    told = {line.split(" ms ")[1].split()[0]: line for line in lines if " ms " in line}
    assert re.fullmatch(
        rf"POST /v1/completions 200 \d+ ms {ids[0]} key [0-9a-f]{{8}} 4\+2 tokens", told[ids[0]]
    )
    assert re.fullmatch(rf"POST /v1/completions 401 \d+ ms {ids[1]}", told[ids[1]])
    assert told[ids[2]].startswith("POST /v1/completions 500 ") and told[ids[2]].endswith("1+1 tokens")
    assert told[ids[3]].startswith("GET (unknown path) 404 ")
    assert told[ids[4]].startswith("POST /v1/completions 429 ")
    assert told[ids[5]].startswith("other /v1/models 401 ")
    assert lines[2].startswith(f"{ids[2]} internal error: RuntimeError at ")
    everything = "\n".join(lines).lower()
    assert not any(secret in everything for secret in ("ana", "garc", "12345678z", "127.0.0.1", key.lower()))


def test_a_client_that_went_away_is_in_the_log_as_such(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    with caplog.at_level(logging.INFO, logger="yunque.server"):
        for pause, read in ((0.02, 50), (0.5, 0)):
            connection = running.connect()
            running.begin(connection, max_tokens=500, pause=pause)
            assert until(lambda: running.service.workers.running == 1)
            if read:
                connection.recv(read)
            connection.close()
            assert until(lambda: not running.service.workers.running)
        assert until(lambda: len(lines_of(caplog)) == 2)
    streamed, silent = lines_of(caplog)
    assert re.fullmatch(r"POST /v1/completions 200 \d+ ms req_\w+ 1\+\d+ tokens disconnected", streamed)
    assert re.fullmatch(r"POST /v1/completions 499 \d+ ms req_\w+ 1\+\d tokens disconnected", silent)
    assert running.metric("disconnected_total") == 2


def test_the_metrics_tell_what_happened(start: Start) -> None:
    running = start()
    running.ask(prompt_tokens=5, max_tokens=4)
    running.ask(prompt_tokens=5, max_tokens=4, stream=True)
    running.get("/ana@example.com")
    answer = running.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "ana@example.com" not in answer.text
    assert until(lambda: running.metric("prompt_tokens_total") == 10)
    assert running.metric("completion_tokens_total") == 8
    assert running.metric('requests_total{method="POST",route="/v1/completions",status="200"}') == 2
    assert running.metric('requests_total{method="GET",route="(unknown path)",status="404"}') == 1
    assert running.metric("first_token_seconds_count") == 2
    assert running.metric('request_seconds_count{route="/v1/completions"}') == 2
    assert running.metric("models_loaded") == 0 and running.metric("model_bytes_limit") > 0
    assert "process_resident_memory_bytes" in answer.text


def test_probes_tell_alive_and_ready_apart(start: Start) -> None:
    running = start(keys_required=True)
    assert running.get("/healthz").json() == {"status": "ok"}
    assert (running.get("/readyz").status_code, running.get("/readyz").json()) == (200, {"status": "ready"})
    running.workspace.catalog.path.rename(running.workspace.root / "elsewhere.db")
    assert running.get("/readyz").status_code == 503
    assert running.get("/healthz").status_code == 200
    (running.workspace.root / "elsewhere.db").rename(running.workspace.catalog.path)
    assert running.get("/readyz").status_code == 200


def test_an_application_that_ended_can_be_started_again(workspace: Workspace) -> None:
    service, model = Service(workspace, False, ServeOptions(workers=2)), Model()
    app = make_app(service, model)
    for _ in range(3):
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/completions", json={"max_tokens": 2}).json()["tokens"] == 2
        assert service.stopping
    assert model.begun == 3


def test_every_path_of_the_api_has_a_scope() -> None:
    paths = ("/v1/models/a/b", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
    assert [scope_of(path) for path in paths] == ["models", "generate", "generate", "generate", "embeddings"]
    assert scope_of("/tokenize") == scope_of("/detokenize") == scope_of("/tokenizer_info") == "tokenize"
    assert scope_of("/v1/modelsX") is None and scope_of("/metrics") == "metrics"
    assert needs_key("/metrics") and needs_key("/x") and not needs_key("/healthz") and not needs_key("/docs")
