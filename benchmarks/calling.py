"""What asking a model costs beside the model: ours over a bare httpx call, and the openai client's and litellm's.

    python benchmarks/calling.py [--rounds 9] [--tasks call,stream,paced] [--litellm PYTHON]

A server on this machine answers at once with the same bytes. `call` is one answer, `stream` one of 100 pieces,
`paced` the same with 5 ms between two pieces, as a quick model sends them. `httpx` is the least that anybody can do:
a request, and `json.loads` of the answer or of each piece. `adapter` is our model alone; `routed` is what an
application asks: router with fallbacks and a deadline, policy (personal data is looked for), budgets in tokens,
measurements. `--litellm` is a Python that has it: it is no dependency of ours. All keep their connection, and take
turns in processes of their own; a time is by the clock unless it says CPU.
"""

import argparse
import json
import os
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from turns import Gate, Program, parser_of, run_worker

PIECES = 100
PACE = 0.005
PROGRAMS = ("httpx", "adapter", "routed", "openai", "litellm")
# Calls in a turn.
TASKS = {"call": 100, "stream": 20, "paced": 2}
ASKED = "¿Cuánto puede pesar la maleta que llevo a bordo del avión?"
MODEL = "fake"
Ask = Callable[[], int]


def piece(text: str, reason: str | None = None) -> bytes:
    """An event of a stream, as one HTTP chunk."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    if reason:
        body["usage"] = {"prompt_tokens": 20, "completion_tokens": PIECES, "total_tokens": 20 + PIECES}
    return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    """Data in HTTP's chunked coding."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


STREAM = [piece(" palabra") for _ in range(PIECES)]
END = piece("", "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MESSAGE = {"role": "assistant", "content": " palabra" * 20}
WHOLE = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 20, "total_tokens": 40},
    }
).encode()


class Answering(socketserver.StreamRequestHandler):
    """Answers every request of a connection with the same bytes."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Until the client goes."""
        while line := self.rfile.readline():
            length = 0
            paced = b"/paced/" in line
            while (header := self.rfile.readline().strip().lower()) != b"":
                if header.startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            asked = json.loads(self.rfile.read(length))
            if not asked.get("stream"):
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(WHOLE)}\r\n\r\n"
                self.wfile.write(head.encode() + WHOLE)
                continue
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for one in STREAM:
                self.wfile.write(one)
                if paced:
                    time.sleep(PACE)
            self.wfile.write(END)


class Server(socketserver.ThreadingTCPServer):
    """The server that all are measured against."""

    allow_reuse_address = daemon_threads = True


def serve() -> None:
    """Tell the port, and answer until standard input ends."""
    with Server(("127.0.0.1", 0), Answering) as server:
        print(server.server_address[1], flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()


def bare(base_url: str, streamed: bool) -> Ask:
    """httpx, and nothing but it."""
    import httpx

    client, url = httpx.Client(trust_env=False), f"{base_url}/chat/completions"
    body = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 200}

    def call() -> int:
        return len(client.post(url, json=body).json()["choices"][0]["message"]["content"])

    def stream() -> int:
        length = 0
        with client.stream("POST", url, json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    length += len(json.loads(line[6:])["choices"][0]["delta"]["content"])
        return length

    return stream if streamed else call


def ours(base_url: str, streamed: bool, routed: bool = False) -> Ask:
    """Our model, alone or with all that an application has around it."""
    from yunque.generate.config import GenerationConfig
    from yunque.llm import Message
    from yunque.llm.router import RouterSettings
    from yunque.llm.routing import Caller, open_bare
    from yunque.llm.routing import routed as layered
    from yunque.workspace import Workspace
    from yunque.workspace.budgets import Budgets

    workspace, name = Workspace.open(tempfile.mkdtemp()), f"{base_url}#{MODEL}"
    if routed:
        Budgets.of(workspace.root).set("app/bench", tokens=10**12)
        settings = RouterSettings(model=name, fallbacks=("ollama/none",), deadline=60)
        model = layered(workspace, settings, caller=Caller(("app/bench", "key/bench")))
    else:
        model = open_bare(workspace, name)
    messages, config = [Message("user", ASKED)], GenerationConfig(max_new_tokens=200)

    def call() -> int:
        return len(model.chat(messages, config).text)

    def stream() -> int:
        return sum(len(one.text) for one in model.stream_chat(messages, config))

    return stream if streamed else call


def openai(base_url: str, streamed: bool) -> Ask:
    """OpenAI's own client."""
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ASKED}],
        "max_tokens": 200,
        "temperature": 0.0,
    }

    def call() -> int:
        return len(client.chat.completions.create(**asked).choices[0].message.content)

    def stream() -> int:
        events = client.chat.completions.create(**asked, stream=True)
        return sum(len(one.choices[0].delta.content or "") for one in events if one.choices)

    return stream if streamed else call


def litellm(base_url: str, streamed: bool) -> Ask:
    """litellm, by the name that it gives an OpenAI-compatible server."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch its price list
    import litellm as library

    library.telemetry = False
    asked = {
        "model": f"openai/{MODEL}",
        "api_base": base_url,
        "api_key": "none",
        "messages": [{"role": "user", "content": ASKED}],
        "max_tokens": 200,
        "temperature": 0.0,
    }

    def call() -> int:
        return len(library.completion(**asked).choices[0].message.content)

    def stream() -> int:
        return sum(
            len(one.choices[0].delta.content or "") for one in library.completion(**asked, stream=True)
        )

    return stream if streamed else call


MAKERS: dict[str, Callable[[str, bool], Ask]] = {
    "httpx": bare,
    "adapter": ours,
    "routed": lambda url, streamed: ours(url, streamed, True),
    "openai": openai,
    "litellm": litellm,
}


def work(gate: Gate, given: argparse.Namespace) -> None:
    """Ask until there are no more turns."""
    path = "paced/v1" if given.tasks == "paced" else "v1"
    streamed = given.tasks != "call"
    ask = MAKERS[given.worker](f"http://127.0.0.1:{given.port}/{path}", streamed)
    expected = len(" palabra") * (PIECES if streamed else 20)
    while True:
        # Some strip what stands before the first word.
        assert expected - 1 <= ask() <= expected
        gate.tick()


def compare(task: str, names: list[str], given: argparse.Namespace) -> None:
    """Print what a call takes with each, and what that is beside a bare one."""
    steps = TASKS[task]
    arguments = ["--tasks", task, "--port", str(given.port), "--threads", str(given.threads)]
    programs = {
        name: Program(
            name, __file__, arguments, given.threads, given.litellm if name == "litellm" else sys.executable
        )
        for name in names
    }
    # A first turn for what is imported, and another for what is warmed up.
    for program in programs.values():
        program.turn()
        program.slices.clear()
    for _ in range(given.rounds + 1):
        for program in programs.values():
            program.turn()
    base = programs["httpx"]
    for name, program in programs.items():
        peak = program.end()
        wall, cpu = (1000 * program.median(kind) / steps for kind in ("wall", "cpu"))
        pairs = list(zip(program.slices[1:], base.slices[1:], strict=True))
        more = statistics.median(1000 * (one.wall - other.wall) / steps for one, other in pairs)
        ratio = statistics.median(one.wall / other.wall for one, other in pairs)
        print(
            f"{task:7} {name:8} {wall:8.2f} ms {cpu:8.2f} ms CPU  over httpx {more:+7.2f} ms, {ratio:5.2f}x "
            f"{peak / 1e6:6.0f} MB"
        )


def main() -> None:
    """Compare, or be one of those that are compared, or the server."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--litellm", default="", help="a Python that has litellm; without it it is left out")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker == "server":
        serve()
        return
    if given.worker:
        run_worker(lambda gate: work(gate, given), TASKS[given.tasks])
        return
    if given.quick:
        given.rounds = 1
    names = [name for name in given.programs.split(",") if given.litellm or name != "litellm"]
    tasks = given.tasks.split(",")
    if unknown := [one for one in (*names, *tasks) if one not in (*PROGRAMS, *TASKS)]:
        parser.error(f"{', '.join(unknown)}: is neither a program nor a task")
    if "httpx" not in names:
        parser.error("--programs must name httpx, which the others are measured against")
    server = subprocess.Popen(
        [sys.executable, __file__, "--worker", "server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    given.port = int(server.stdout.readline())
    try:
        for task in tasks:
            compare(task, names, given)
    finally:
        server.communicate("")


if __name__ == "__main__":
    main()
