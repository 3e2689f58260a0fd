"""Clients that send or read slowly, go away without a word, or speak no HTTP: each on a real socket."""

import json
import logging
import socket
import time
from collections.abc import Callable

import pytest
from around import Running, until

from yunque.server.connections import Patience

Start = Callable[..., Running]
QUICK = Patience(head=0.5, stalled=0.7, connections=20, head_bytes=8192)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def running(start: Start, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr("yunque.server.process.KEEP_ALIVE_SECONDS", 0.2)
    return start(patience=QUICK)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as closing."""
    said = b""
    try:
        while block := connection.recv(65536):
            said += block
    except ConnectionResetError:
        pass
    return said


def test_a_client_that_hangs_up_ends_its_generation_within_a_step(running: Running) -> None:
    connection = running.connect()
    running.begin(connection, max_tokens=10_000, pause=0.01)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    left = time.monotonic()
    assert running.model.closed.wait(5)
    assert time.monotonic() - left < 1 and running.model.written[0] < 500
    assert until(lambda: running.metric("disconnected_total") == 1)
    assert until(lambda: not running.service.running and not running.service.workers.running)


def test_a_client_that_resets_the_connection_ends_its_generation_too(running: Running) -> None:
    connection = running.connect()
    running.begin(connection, max_tokens=10_000, pause=0.01)
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    assert running.model.closed.wait(5)


def test_a_client_that_hangs_up_before_the_first_token_is_heard(running: Running) -> None:
    connection = running.connect()
    running.begin(connection, max_tokens=100, pause=0.5)
    assert until(lambda: running.model.begun == 1)
    connection.close()
    assert running.model.closed.wait(5)
    assert running.model.written[0] <= 2


def test_a_reader_that_stalls_is_cut_and_costs_no_memory_meanwhile(running: Running) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", running.port))
    # 20 KB a token: a gigabyte, were it all made.
    running.begin(connection, max_tokens=50_000, width=4000)
    assert running.model.closed.wait(10)
    assert running.model.written[0] < 2000
    assert until(lambda: running.metric('connections_cut_total{reason="reads nothing"}') == 1)
    assert until(lambda: not running.service.running)
    connection.close()


def test_a_reader_that_is_slow_but_reads_gets_everything(running: Running) -> None:
    with running.connect() as connection:
        running.begin(connection, max_tokens=300, width=4000)
        said = b""
        while not said.endswith(b"0\r\n\r\n"):
            said += connection.recv(1_000_000)
            time.sleep(0.02)
    assert said.count(b"data: word") == 300


def test_a_head_that_never_ends_is_cut(running: Running) -> None:
    with running.connect() as slow, running.connect() as silent:
        started = time.monotonic()
        slow.sendall(HEAD)
        cut = False
        while not cut and time.monotonic() - started < 10:
            try:
                slow.sendall(b"X-A: 1\r\n")
            except OSError:
                cut = True
            time.sleep(0.1)
        assert cut and rest(silent) == b""
        assert 0.5 < time.monotonic() - started < 8
    assert running.metric('connections_cut_total{reason="sends no request"}') >= 2
    assert running.ask().status_code == 200


def test_a_body_that_never_ends_is_408(running: Running) -> None:
    with running.connect() as dripping, running.connect() as silent:
        for connection in (dripping, silent):
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        assert b" 408 " in rest(silent).split(b"\r\n")[0]
        said = b""
        dripping.settimeout(0.1)
        for _ in range(100):
            try:
                dripping.sendall(b" ")
                said += dripping.recv(65536)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert said == b"" or b" 408 " in said
    assert until(lambda: not running.service.running)


def test_half_a_request_and_then_nothing_is_no_error_of_ours(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for part in (
            b"",
            b"P",
            HEAD,
            HEAD + b"Content-Length: 50\r\n\r\n{",
            b"\x16\x03\x01\x02\x00\x01",
            b"\r\n" * 9,
        ):
            with running.connect() as connection:
                connection.sendall(part)
        assert until(lambda: not running.service.running)
        assert running.ask().status_code == 200
    assert "internal error" not in caplog.text and "Traceback" not in caplog.text


def test_too_long_a_head_and_no_http_are_told_in_openais_shape(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="yunque.server"):
        for sent, status in ((HEAD + b"X-A: " + b"a" * 20_000, 431), (b"\0\1\2\r\n\r\n", 400)):
            with running.connect() as connection:
                connection.sendall(sent)
                head, _, body = rest(connection).partition(b"\r\n\r\n")
            assert f" {status} ".encode() in head.split(b"\r\n")[0]
            assert json.loads(body)["error"]["code"] == "invalid_http"
    lines = [record.getMessage() for record in caplog.records if record.name == "yunque.server"]
    assert lines == ["- (no request) 431 0 ms -", "- (no request) 400 0 ms -"]


def test_rubbish_in_the_middle_of_a_body_or_an_answer_harms_nobody(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with running.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nrubbish")
        assert b" 400 " in rest(connection)
    with running.connect() as connection:
        running.begin(connection, max_tokens=10_000, pause=0.01)
        connection.recv(10)
        connection.sendall(b"\0\1\2 rubbish\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert running.model.closed.wait(5)
    assert until(lambda: not running.service.running)
    assert "internal error" not in caplog.text
    assert running.ask().status_code == 200


def test_who_sends_without_end_while_an_answer_is_made_is_cut(running: Running) -> None:
    with running.connect() as connection:
        running.begin(connection, max_tokens=10_000, pause=0.01)
        assert until(lambda: running.model.begun == 1)
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        assert running.model.closed.wait(5)
    assert running.metric('connections_cut_total{reason="sends too much ahead"}') == 1


def test_requests_in_a_row_on_one_connection_are_answered_in_order(running: Running) -> None:
    with running.connect() as connection:
        for count in (2, 3):
            running.begin(connection, max_tokens=count, pause=0.05)
        said = b""
        while said.count(b"[DONE]") < 2:
            said += connection.recv(65536)
    first, second = said.split(b"[DONE]")[:2]
    assert (first.count(b"word"), second.count(b"word")) == (2, 3)


def test_an_idle_connection_is_closed_and_too_many_are_refused(running: Running) -> None:
    many = [running.connect() for _ in range(24)]
    said = [rest(connection) for connection in many]
    assert sum(b" 503 " in each and b"too_many_connections" in each for each in said) == 4
    assert said.count(b"") == 20
    for connection in many:
        connection.close()
    assert running.ask().status_code == 200


def test_the_system_ends_connections_to_machines_that_are_gone(running: Running) -> None:
    from yunque.server.run import bound_socket

    with bound_socket("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with socket.create_connection(listening.getsockname()):
                accepted, _ = listening.accept()
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
                accepted.close()
    assert running.ask().status_code == 200
