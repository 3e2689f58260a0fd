from pathlib import Path

import pytest

from yunque import machine
from yunque.errors import UserError
from yunque.machine import control_group_limits, machine_memory
from yunque.processes import rank


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_control_group_of_version_2_and_those_around_it_limit_memory(tmp_path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path / "sys/fs/cgroup/outer/memory.max", "2000\n")
    write(tmp_path / "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    assert control_group_limits(tmp_path) == [2000]


def test_a_control_group_of_version_1_limits_memory(tmp_path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:cpu:/elsewhere\n4:memory:/job/one\n")
    write(tmp_path / "sys/fs/cgroup/memory/job/one/memory.limit_in_bytes", "3000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/elsewhere/memory.limit_in_bytes", "1\n")
    assert control_group_limits(tmp_path) == [3000]


def test_inside_a_container_the_own_group_is_the_root(tmp_path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/docker/8f0a\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "4000\n")
    assert control_group_limits(tmp_path) == [4000]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_an_environment_that_no_torchrun_made_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "dos")
    with pytest.raises(UserError, match=f"{name}='dos'"):
        rank()


def test_without_control_groups_there_is_no_limit(tmp_path) -> None:
    assert control_group_limits(tmp_path) == []


def test_the_least_of_all_limits_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = machine_memory()
    assert installed is not None
    monkeypatch.setattr(machine, "control_group_limits", lambda: [installed // 2, installed * 2])
    assert machine_memory() == installed // 2
