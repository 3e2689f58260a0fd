"""The library is compiled once; where it cannot be, one sentence says why and PyTorch does the work."""

import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from yunque.native import build as building
from yunque.native.build import NotBuilt, build, native_library


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("YUNQUE_NATIVE", raising=False)
    native_library.cache_clear()
    yield tmp_path / "cache" / "yunque" / "native"
    native_library.cache_clear()


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Path:
    """A compiler that writes a line to a file for each time it compiles, and then `does` something."""
    program, log = folder / "a compiler", folder / "log"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo one && exit\necho run >> "{log}"\n'
        f"for last; do :; done\n{does}\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", f"'{program}'")
    return log


def test_it_is_compiled_once_and_anew_when_what_it_is_made_of_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler(tmp_path, monkeypatch, 'echo made > "$last"')
    first = build()
    assert build() == first and first.read_text() == "made\n" and log.read_text() == "run\n"
    assert list(cache.iterdir()) == [first]
    assert build(("-DOTHER",)) != first
    monkeypatch.setattr(building, "_processor", lambda: "another")
    assert build() != first
    assert log.read_text() == "run\n" * 3


def test_processes_at_once_do_not_disturb_each_other(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, 'sleep 0.1; echo half > "$last"; sleep 0.1; echo whole > "$last"')
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build().read_text(), range(4)))
    assert made == ["whole\n"] * 4
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo 'library.cpp:1: no such thing' >&2; exit 1", "library.cpp:1: no such thing"),
        ('echo nonsense > "$last"', "file too short"),
    ],
)
def test_what_fails_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    does: str,
    told: str,
) -> None:
    compiler(tmp_path, monkeypatch, does)
    with caplog.at_level(logging.WARNING):
        assert native_library() is None
        count = len(caplog.records)
        assert native_library() is None and len(caplog.records) == count  # it is told once
    record = caplog.records[-1]
    assert (
        told in record.getMessage() and "PyTorch" in record.getMessage() and "\n" not in record.getMessage()
    )


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotBuilt, match=r"no C\+\+ compiler"):
        build()
    assert native_library() is None
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NotBuilt, match="does not run"):
        build()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, 'echo made > "$last"')
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NotBuilt, match="could not be compiled into"):
        build()


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = compiler(tmp_path, monkeypatch, 'echo made > "$last"')
    monkeypatch.setenv("YUNQUE_NATIVE", "0")
    assert native_library() is None and not log.exists()


def test_what_a_killed_compiler_left_is_removed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "yunque" / "native"
    folder.mkdir(parents=True)
    old, fresh = folder / "tmpold.so", folder / "tmpfresh.so"
    for left in (old, fresh):
        left.touch()
    os.utime(old, (0, 0))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NotBuilt):
        build()
    assert not old.exists() and fresh.exists()
