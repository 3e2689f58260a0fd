"""The server under many clients, of whom some hang up and some send rubbish: is any answer lost or crossed?

    python benchmarks/soak.py                             # 64 clients for 5 minutes
    python benchmarks/soak.py --minutes 0.2 --clients 8   # a quick try

A small model with random weights is served by `yunque serve` in a process of its own. What each prompt is answered
with (greedy) was asked beforehand, one at a time. Exit code 1 when a check fails.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from soak_clients import Client, Exchange, Prompt

from yunque.cli.show import bars, out, table
from yunque.workspace import Workspace
from yunque.workspace.api_keys import create_api_key, key_usage

_MODEL = "soak"
_LINE = re.compile(r"^\S+ (\S+) (.+) (\d{3}) \d+ ms (\S+)( .*)?$")
_RISE_BYTES = 8_000_000
_RISE_SHARE = 0.05
_WORDS = (
    *(
        "maleta",
        "vuelo",
        "perro",
        "cabina",
        "precio",
        "billete",
        "mar",
        "sol",
        "casa",
        "tren",
        "azul",
        "verde",
    ),
    *("uno", "dos", "tres", "red", "fly", "cat", "dog", "tea"),
)


@dataclass
class Watched:
    """What was seen of the server's process, once a second: seconds, bytes and open files."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    @property
    def rise(self) -> float:
        """Bytes by which the last third is above the second."""
        third = max(1, len(self.bytes) // 3)
        return statistics.median(self.bytes[-third:]) - statistics.median(self.bytes[-2 * third : -third])

    @property
    def slope(self) -> float:
        """Bytes a minute, by least squares over the second half."""
        half = len(self.bytes) // 2
        if len(self.bytes) - half < 2:
            return 0.0
        return 60 * statistics.linear_regression(self.seconds[half:], self.bytes[half:]).slope


@dataclass
class Serving:
    """The server that is tried out."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    key: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.removesuffix("/v1").rpartition(":")[2])

    def log_lines(self) -> list[tuple[str, str, int, str, str]]:
        """Method, route, status, id and remarks of every request in its log."""
        found = (_LINE.match(line) for line in self.log.read_text().splitlines())
        return [(m[1], m[2], int(m[3]), m[4], (m[5] or "").strip()) for m in found if m]


def made_model(workspace: Workspace, layers: int, hidden: int) -> None:
    """A decoder with random weights and its tokenizer."""
    import torch

    from yunque.model import Llama, LlamaConfig, save_model
    from yunque.tokenizer import Tokenizer

    generator = random.Random(0)
    texts = [" ".join(generator.choices(_WORDS, k=12)) for _ in range(400)]
    tokenizer = Tokenizer.train(texts, vocab_size=400)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.end_id,
        eos_token_id=tokenizer.end_id,
        pad_token_id=tokenizer.pad_id,
    )
    model = Llama(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Weights as they begin say nearly the same after every prompt.
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    files = {**save_model(model), "tokenizer.json": tokenizer.to_json().encode()}
    workspace.put("model", _MODEL, files)


def started(workspace: Workspace, log: Path, key: str) -> Serving:
    """`yunque serve` in a process of its own."""
    command = [sys.executable, "-m", "yunque.cli.main", "serve", "--port", "0", "--keys", "--model", _MODEL]
    environment = {**os.environ, "YUNQUE_WORKSPACE": str(workspace.root), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    if not first.startswith("Serving "):
        raise SystemExit(f"the server did not start: {log.read_text()}")
    return Serving(process, first.split()[1], log, key)


def asked_alone(serving: Serving, count: int, length: int) -> list[Prompt]:
    """Prompts with what they are answered with when nobody else asks; each answer is another."""
    generator = random.Random(1)
    prompts: dict[str, Prompt] = {}
    with (
        httpx.Client(headers={"authorization": f"Bearer {serving.key}"}, timeout=60) as client,
        bars("answers beforehand", count) as bar,
    ):
        for _ in range(20 * count):
            text = " ".join(generator.choices(_WORDS, k=generator.randint(2, 24)))
            body = {"model": _MODEL, "prompt": text, "max_tokens": length, "temperature": 0}
            answer = client.post(f"{serving.url}/completions", json=body).raise_for_status().json()
            prompt = Prompt(text, length, answer["choices"][0]["text"], answer["usage"]["completion_tokens"])
            if prompt.answer and prompt.answer not in prompts:
                prompts[prompt.answer] = prompt
                bar.advance()
            if len(prompts) == count:
                return list(prompts.values())
    raise SystemExit(f"only {len(prompts)} of {count} prompts have answers of their own")


async def watch(pid: int, seen: Watched) -> None:
    """Look at the process once a second."""
    begun, page = time.monotonic(), os.sysconf("SC_PAGE_SIZE")
    while True:
        try:
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
            seen.files.append(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208  # a count of names is enough
        except OSError:
            return
        seen.seconds.append(time.monotonic() - begun)
        seen.bytes.append(resident)
        await asyncio.sleep(1)


async def storm(
    serving: Serving, prompts: Sequence[Prompt], minutes: float, clients: int
) -> tuple[list[Exchange], Watched]:
    """Everything that the clients did, and what the server looked like meanwhile."""
    seen = Watched()
    watching = asyncio.create_task(watch(serving.process.pid, seen))
    until = time.monotonic() + 60 * minutes
    made = [Client(number, serving.port, serving.key, _MODEL, prompts) for number in range(clients)]
    with bars("storm", 60 * minutes) as bar:

        async def tick() -> None:
            while True:
                await asyncio.sleep(1)
                bar.advance(1, f"{sum(len(client.done) for client in made)} requests")

        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(client.run(until) for client in made))
        ticking.cancel()
    # Generations that nobody waits for any more end now.
    await asyncio.sleep(2)
    watching.cancel()
    return [exchange for client in made for exchange in client.done], seen


def metric(serving: Serving, name: str) -> float:
    """One figure of /metrics."""
    text = httpx.get(
        serving.url.replace("/v1", "/metrics"), headers={"authorization": f"Bearer {serving.key}"}
    ).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1.0


def checked(
    exchanges: Sequence[Exchange], lines: Sequence[tuple[str, str, int, str, str]], seen: Watched
) -> list[tuple[str, bool, str]]:
    """Each check: what, whether it holds, and the figures."""
    logged = Counter(line[3] for line in lines)
    answered = [each for each in exchanges if each.id]
    absent = [each for each in answered if logged[each.id] != 1]
    complete = sum(each.complete for each in exchanges)
    requests = sum(line[1] != "(no request)" for line in lines)
    wrong = [each for each in exchanges if each.problem]
    server_errors = Counter(line[2] for line in lines if line[2] >= 500)
    rise_allowed = max(_RISE_BYTES, _RISE_SHARE * statistics.median(seen.bytes))
    return [
        ("answers right, none crossed or lost", not wrong, wrong[0].problem if wrong else "all"),
        ("no 5xx", not server_errors, str(dict(server_errors)) if server_errors else "none"),
        ("every request is in the log", requests == complete, f"{complete} sent, {requests} logged"),
        ("every id is there once", not absent, f"{len(answered)} ids, {len(absent)} not once"),
        (
            "memory is flat",
            seen.rise <= rise_allowed,
            f"{seen.rise / 1e6:+.1f} MB last third against the second ({rise_allowed / 1e6:.0f} allowed), "
            f"{seen.slope / 1e6:+.2f} MB/min",
        ),
    ]


def report(exchanges: Sequence[Exchange], seen: Watched, checks: Sequence[tuple[str, bool, str]]) -> bool:
    """Print what happened; whether all checks hold."""
    rows: list[tuple[Any, ...]] = []
    for kind in sorted({each.kind for each in exchanges}):
        of_kind = [each for each in exchanges if each.kind == kind]
        statuses = Counter(each.status or "-" for each in of_kind)
        times = sorted(each.seconds for each in of_kind)
        told = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items(), key=str))
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))]
        rows.append((kind, len(of_kind), told, f"{p50:.2f}", f"{p99:.2f}"))
    out().print(
        table("Requests", ("kind", "count", "status", "s, median", "s, 99 %"), rows, right=("count",))
    )
    resident = [f"{value / 1e6:.0f}" for value in (seen.bytes[0], max(seen.bytes), seen.bytes[-1])]
    out().print(
        f"server: {' / '.join(resident)} MB at the start / most / end, {max(seen.files)} files at most"
    )
    out().print(
        table("Checks", ("check", "", "figures"), [(c[0], "ok" if c[1] else "FAILS", c[2]) for c in checks])
    )
    return all(check[1] for check in checks)


def main() -> None:
    """Run the server, the clients and the checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--length", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(Path(folder) / "workspace")
        made_model(workspace, given.layers, given.hidden)
        with workspace.catalog.transaction() as connection:
            from yunque.workspace.api_keys import SCOPES, Terms

            made, key = create_api_key(connection, "soak", Terms(scopes=SCOPES, tokens_a_day=10**11))
        serving = started(workspace, Path(folder) / "server.log", key)
        try:
            prompts = asked_alone(serving, 2 * given.clients, given.length)
            before = len(serving.log_lines())
            exchanges, seen = asyncio.run(storm(serving, prompts, given.minutes, given.clients))
            after = serving.log_lines()[before:]
            checks = checked(exchanges, after, seen)
            waiting = metric(serving, "yunque_running_requests") + metric(serving, "yunque_waiting_requests")
            checks.append(("nothing runs any more", waiting == 0, f"{waiting:.0f} running or waiting"))
            used = key_usage(workspace.catalog.connection(), made.id).completion_tokens
            read = metric(serving, "yunque_completion_tokens_total")
            finished = sum(each.tokens for each in exchanges) + sum(prompt.tokens for prompt in prompts)
            checks.append(
                (
                    "tokens charged = counted",
                    used == read >= finished,
                    f"{used} charged, {finished} in whole answers",
                )
            )
            serving.process.send_signal(signal.SIGTERM)
            ended = serving.process.wait(timeout=30)
            checks.append(("ends in peace", ended == 0, f"exit code {ended}"))
            errors = [line for line in serving.log.read_text().splitlines() if "error" in line.lower()]
            checks.append(("no error in the log", not errors, errors[0] if errors else "none"))
        finally:
            serving.process.kill()
            serving.process.wait()
        if not report(exchanges, seen, checks):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
