"""Runs the tests of a module in a process that was made small first. Run as a script, by `sandbox.py` alone.

Before the code is loaded the process gives up: more than so much time, memory, files and file size; the network (a
namespace of its own where the kernel allows it, and a hook that refuses sockets everywhere); other processes; files
outside of its folder, but for reading Python's own. What is left is Python in an empty room. It is meant for code
that a model wrote by mistake, not for an attacker who knows this file: for that take a virtual machine.
"""

import asyncio
import importlib
import inspect
import json
import os
import socket
import sys
import traceback
import unittest
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_REFUSED = (
    "subprocess.", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
    "os.killpg", "os.chmod", "os.chown", "os.link", "os.symlink", "pty.", "ctypes.",
    "socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostby",
    "socket.getnameinfo", "urllib.", "http.client", "ftplib.", "smtplib.", "webbrowser.", "shutil.", "signal.",
    "sqlite3.", "resource.", "syslog.", "mmap.", "code.__new__", "sys.setprofile", "sys.settrace",
)  # fmt: skip
_CHANGING = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.utime",
    "os.listdir",
    "os.scandir",
)
_MOST_ERROR = 1000  # more than is told: where it is cut for good nothing private may lie in between


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            # macOS knows no limit of memory; and nobody may raise a limit that is lower already.
            continue


def _leave_the_network() -> None:
    """Die with the parent, gain no rights, and see no network: as far as the kernel allows each."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.unshare(_CLONE_NEWNET):
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    except (OSError, AttributeError, ImportError):
        pass
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]


def _close_the_door(folder: str) -> None:
    """A hook that cannot be taken away again."""
    import _posixsubprocess

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("the sandbox starts no process")

    setattr(_posixsubprocess, "fork_exec", refuse)  # noqa: B010 (it has no audit event of its own)
    readable = tuple({os.path.realpath(place) for place in (sys.prefix, sys.base_prefix, *sys.path) if place})
    devices = ("/dev/null", "/dev/urandom")
    inside = folder + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _check_open(arguments, readable, devices, inside)
        elif event == "socket.__new__":
            # asyncio wakes itself up over a pair of these, which are connected to nothing else.
            if arguments[1] != socket.AF_UNIX:
                raise PermissionError("the sandbox has no network")
        elif event == "import" and arguments[0] in ("ctypes", "_ctypes"):
            raise ImportError("the sandbox has no ctypes")
        elif event.startswith(_REFUSED):
            raise PermissionError(f"the sandbox refuses {event}")
        elif event in _CHANGING:
            place = arguments[0] if arguments else None
            if event in ("os.listdir", "os.scandir") or not isinstance(place, str | bytes):
                return
            if not os.path.realpath(os.fsdecode(place)).startswith(inside):
                raise PermissionError(f"the sandbox refuses {event} outside of its folder")

    sys.addaudithook(hook)


def _check_open(
    arguments: tuple[Any, ...], readable: tuple[str, ...], devices: tuple[str, ...], inside: str
) -> None:
    path, mode, flags = arguments
    if isinstance(path, int):
        return
    place = os.path.realpath(os.fsdecode(path))
    if place.startswith(inside) or place in devices:
        return
    writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(
        one in (mode or "") for one in "wax+"
    )
    if writes or not place.startswith(readable):
        raise PermissionError(f"the sandbox opens no {place}")


def _tests(module: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every test of a module by its name: functions `test_*`, also async ones, and methods of TestCase classes."""
    loader = unittest.TestLoader()
    for name, thing in list(vars(module).items()):
        if inspect.isclass(thing) and issubclass(thing, unittest.TestCase):
            if thing.__module__ == module.__name__:
                for method in loader.getTestCaseNames(thing):
                    yield f"{name}.{method}", _case(thing, method)
        elif name.startswith("test") and inspect.isfunction(thing):
            yield name, _function(thing)


def _case(cls: type[unittest.TestCase], method: str) -> Callable[[], None]:
    def run() -> None:
        result = unittest.TestResult()
        cls(method).run(result)
        for told in (*result.errors, *result.failures):
            raise AssertionError(told[1].strip().splitlines()[-1])
        if result.skipped:
            raise AssertionError(f"skipped: {result.skipped[0][1]}")
        if result.unexpectedSuccesses or result.expectedFailures:
            raise AssertionError("a test that is expected to fail proves nothing")

    return run


def _function(function: Any) -> Callable[[], None]:
    def run() -> None:
        made = function()
        if inspect.isawaitable(made):
            asyncio.run(_awaited(made))

    return run


async def _awaited(made: Any) -> None:
    await made


def main() -> None:
    """Run the tests of test_subject.py in the folder given, and write a JSON line for each to the file given."""
    folder, handle, limits = os.path.realpath(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    _leave_the_network()
    _limit(limits)
    _close_the_door(folder)

    def tell(**line: Any) -> None:
        os.write(handle, json.dumps(line).encode() + b"\n")

    try:
        tests = list(_tests(importlib.import_module("test_subject")))
    except BaseException as error:
        tell(loaded=False, error=_told(error))
        return
    tell(loaded=True, tests=[name for name, _ in tests])
    for name, test in tests:
        try:
            test()
        except BaseException as error:  # sys.exit() in a test is a failure too
            tell(name=name, passed=False, error=_told(error))
        else:
            tell(name=name, passed=True, error="")


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:_MOST_ERROR]


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # no thread that a test left behind keeps the process alive
