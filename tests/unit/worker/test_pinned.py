"""A container's namespace keeps its name while it is held: kills hit nobody else."""

from __future__ import annotations

import subprocess

import pytest

from globus_compute_apptainer.worker import agent
from globus_compute_apptainer.worker.container import Pinned

IN_NEW_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def begin() -> tuple[subprocess.Popen[str], str]:
    """A process in a mount namespace of its own, which waits; and that name."""
    script = "readlink /proc/self/ns/mnt; read line"
    process = subprocess.Popen(
        [*IN_NEW_NAMESPACE, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("go\n", timeout=30)


def names_of_new_namespaces(count: int = 30) -> set[str]:
    started = [begin() for _ in range(count)]
    for process, _ in started:
        end(process)
    return {name for _, name in started}


def test_a_held_name_is_given_to_no_other_namespace() -> None:
    process, name = begin()
    held = Pinned.of(process.pid, name)
    assert held.name == name
    end(process)
    assert name not in names_of_new_namespaces()
    held.let_go()
    assert held.name == ""
    held.let_go()


def test_the_workers_own_namespace_is_never_named() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, text=True)
    assert Pinned.of(process.pid, agent.mount_namespace()).name == ""
    end(process)


@pytest.mark.parametrize("claimed", ["mnt:[1]", "", "mnt:[402653]x"])
def test_a_name_that_is_not_the_guards_is_not_believed(claimed: str) -> None:
    process, _ = begin()
    assert Pinned.of(process.pid, claimed).name == ""
    end(process)


def test_a_guard_that_is_gone_leaves_no_name() -> None:
    process, name = begin()
    end(process)
    assert Pinned.of(process.pid, name).name == ""
