"""The sandbox: tests are told apart, nothing gets out, nothing stays behind; and changed programs are noticed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yunque.apps.tasks.mutants import mutants_of
from yunque.apps.tasks.sandbox import SandboxLimits, run_apart, run_tests
from yunque.apps.tasks.testing import check_tests, proven

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs a POSIX system")

MEDIAN = (
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2:\n        return ordered[middle]\n"
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n"
)
MEDIAN_TESTS = (
    "import unittest\nimport subject\n\nclass Median(unittest.TestCase):\n"
    "    def test_odd(self):\n        self.assertEqual(subject.median([3, 1, 2]), 2)\n"
    "    def test_even(self):\n        self.assertEqual(subject.median([4, 1, 2, 3]), 2.5)\n"
)
TOTAL = (
    "async def total(client, ids):\n    amount = 0\n    for id in ids:\n"
    "        order = await client.fetch(id)\n        amount += order['price'] * order['count']\n    return amount\n"
)
TOTAL_TESTS = (
    "import unittest\nfrom unittest.mock import AsyncMock, call\nimport subject\n\n"
    "class Total(unittest.IsolatedAsyncioTestCase):\n"
    "    async def test_sum(self):\n"
    "        client = AsyncMock()\n        client.fetch.return_value = {'price': 2, 'count': 3}\n"
    "        self.assertEqual(await subject.total(client, [1, 2]), 12)\n"
    "        self.assertEqual(client.fetch.await_args_list, [call(1), call(2)])\n"
    "    async def test_wrong(self):\n        self.assertEqual(await subject.total(AsyncMock(), []), 1)\n"
)


def test_each_test_is_told_with_how_it_went_async_ones_too() -> None:
    run = run_tests(TOTAL, TOTAL_TESTS)
    assert [(one.name, one.passed) for one in run.results] == [
        ("Total.test_sum", True),
        ("Total.test_wrong", False),
    ]
    assert "0 != 1" in run.results[1].error


def test_tests_are_proven_by_changed_programs_and_empty_ones_are_not() -> None:
    good = proven(MEDIAN, MEDIAN_TESTS, 4)
    assert good["proven"] and all(one["passed"] for one in good["results"]) and len(good["mutants"]) == 4
    hollow = "import subject\ndef test_nothing():\n    assert subject.median\n"
    bad = proven(MEDIAN, hollow, 3)
    assert (
        not bad["proven"]
        and bad["results"][0]["passed"]
        and not any(one["noticed"] for one in bad["mutants"])
    )
    assert not proven(MEDIAN, "import subject\ndef test_no():\n    assert False\n", 3)["mutants"]


ATTEMPTS = {
    "network": "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
    "inet": "import socket; socket.socket(socket.AF_INET)",
    "unix": "import socket; socket.socket(socket.AF_UNIX).connect('/run/x')",
    "name": "import socket; socket.getaddrinfo('localhost', 80)",
    "fork": "import os; os.fork()",
    "system": "import os; os.system('true')",
    "popen": "import subprocess; subprocess.run(['true'])",
    "fork_exec": "import _posixsubprocess; _posixsubprocess.fork_exec()",
    "read": "open('/etc/passwd').read()",
    "write": "open('/tmp/yunque-escaped', 'w')",
    "remove": "import os; os.remove('/etc/hostname')",
    "ctypes": "import ctypes; ctypes.CDLL(None)",
    "kill": "import os; os.kill(os.getppid(), 0)",
    "large": "open('large', 'wb').write(b'x' * 3_000_000)",
    "memory": "bytearray(8_000_000_000)",
    "link": "import os; os.symlink('/etc/passwd', 'x'); open('x').read()",
    "raised": "import sys; sys.exit(0)",
}
ALLOWED = {
    "inside": "open('fine', 'w').write('x'); assert open('fine').read() == 'x'",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "threads": "import asyncio; asyncio.run(asyncio.to_thread(lambda: 1))",
    "library": "import json, decimal, dataclasses, datetime; json.dumps({})",
    "numpy": "import numpy; assert numpy.mean([1, 3]) == 2",
    "no_keys": "import os; assert not [name for name in os.environ if 'KEY' in name]",
}


def test_nothing_gets_out_and_usual_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_API_KEY", "secret")
    tests = "import subject\n" + "".join(
        f"def test_{name}():\n    {code}\n" for name, code in {**ATTEMPTS, **ALLOWED}.items()
    )
    results = {one.name.removeprefix("test_"): one for one in run_tests("x = 1\n", tests).results}
    assert {name for name, one in results.items() if one.passed} == set(ALLOWED)
    assert not Path("/tmp/yunque-escaped").exists()


def test_without_the_sandbox_those_attempts_would_do_something() -> None:
    """The negative control: outside, what the sandbox refuses succeeds."""
    for name in ("inet", "popen", "read", "ctypes"):
        assert subprocess.run([sys.executable, "-c", ATTEMPTS[name]], check=False).returncode == 0, name


def test_a_test_that_ends_the_process_takes_no_other_ones_result() -> None:
    tests = "import os, subject\ndef test_a():\n    pass\ndef test_b():\n    os._exit(0)\ndef test_c():\n    pass\n"
    assert [one.passed for one in run_tests("", tests).results] == [True, False, False]


def test_a_loop_without_end_is_ended_in_time() -> None:
    started = time.monotonic()
    run = run_tests(
        "", "import subject\ndef test_x():\n    while True: pass\n", SandboxLimits(wall_seconds=1.5)
    )
    assert time.monotonic() - started < 8 and not run.results[0].passed and "time was over" in run.fault


def test_what_cannot_be_loaded_is_told() -> None:
    run = run_tests("raise RuntimeError('broken')", "import subject\ndef test_x():\n    pass\n")
    assert not run.results and "RuntimeError: broken" in run.fault


def test_children_that_left_the_group_are_ended_too(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    open('child', 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    assert not run_apart([sys.executable, "-c", code], tmp_path, 2.0)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_mutants_differ_in_one_place_and_stay_programs() -> None:
    mutants = mutants_of(MEDIAN, 50)
    assert len({one.code for one in mutants}) == len(mutants) > 5
    for one in mutants:
        compile(one.code, "mutant", "exec")
    assert {one.change for one in mutants} >= {"returns None", "FloorDiv -> Mult", "2 -> 3"}
    assert len(mutants_of(MEDIAN, 3)) == 3 and mutants_of("x = 1 + 2\n") == []


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("def test(:", "not Python"),
        ("def test_x():\n    pass\n", "do not import"),
        ("import subject\n", "no test"),
        ("import pytest, subject\ndef test_x():\n    pass\n", "pytest"),
    ],
)
def test_tests_are_looked_at_before_they_run(tests: str, said: str) -> None:
    assert said in str(check_tests({"tests": tests}, {}, "en"))
    assert check_tests({"tests": MEDIAN_TESTS}, {}, "en") is None
