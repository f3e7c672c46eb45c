"""The kernel's own answer to a task that takes too much memory.

As root, since a control group has to be made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Inside

ROOT = Path("/sys/fs/cgroup")
LIMIT = 96 * 1024**2

pytestmark = [
    pytest.mark.apptainer,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make control groups"),
]


def process():
    import os

    return os.getpid()


def take(size):
    data = b"x" * size
    return len(data)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group whose processes may take :data:`LIMIT` bytes of memory."""
    version_1 = (ROOT / "memory" / "memory.limit_in_bytes").exists()
    if not version_1 and "memory" not in _text(ROOT / "cgroup.subtree_control"):
        pytest.skip("there are no control groups for memory here")
    made = (ROOT / "memory" if version_1 else ROOT) / f"gc-apptainer-{os.getpid()}"
    made.mkdir()
    name = "memory.limit_in_bytes" if version_1 else "memory.max"
    (made / name).write_text(str(LIMIT))
    for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        if (made / swap).exists():
            (made / swap).write_text(str(LIMIT if version_1 else 0))
    yield made
    made.rmdir()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_task_that_the_kernel_kills_for_its_memory(
    inside: Inside, group: Path
) -> None:
    child = inside.value(process)
    (group / "cgroup.procs").write_text(str(child))
    assert inside.value(take, LIMIT // 4) == LIMIT // 4
    result = inside.result(take, 4 * LIMIT)
    assert result.is_error
    assert result.error_details.code == "container-crashed"
    assert "signal SIGKILL" in result.data
    assert inside.value(process) != child
    assert inside.value(take, LIMIT // 4) == LIMIT // 4
