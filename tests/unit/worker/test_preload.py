"""Modules that are imported once, and those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MODULES = {
    "fine": "import os\nPID = os.getpid()\n",
    "broken": "raise ValueError('on purpose')\n",
    "exiting": "import os\nos._exit(7)\n",
    "killed": "import os\nos.kill(os.getpid(), 11)\n",
    "quitting": "import sys\nsys.exit('enough')\n",
    "threaded": (
        "import threading\n"
        "threading.Thread(\n"
        "    target=threading.Event().wait, name='worker', daemon=True\n"
        ").start()\n"
    ),
    "noisy": "print('hello')\n",
}


@pytest.fixture
def preloaded(agent_launch, start, tmp_path: Path):
    """``preloaded("fine")``: a child in a container that imports this first."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)

    def make(*names: str, key: str = ""):
        wanted = json.dumps(names)
        return start(agent_launch(preload=wanted, PYTHONPATH=str(folder)), key)

    return make


def where(name):
    import importlib
    import os
    import sys

    loaded = name in sys.modules
    return loaded, os.getpid() == importlib.import_module(name).PID


def loaded(*names):
    import sys

    return [name in sys.modules for name in names]


def test_imported_before_the_child_was(preloaded, asker):
    child = preloaded("fine")
    assert child.facts.not_preloaded == {}
    assert tuple(asker.ask(child, where, "fine")) == (True, False)


def test_not_preloaded_is_imported_by_the_task(preloaded, asker):
    assert tuple(asker.ask(preloaded(), where, "fine")) == (False, True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "ValueError: on purpose"),
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("exiting", "importing it ended the process"),
        ("killed", "importing it ended the process by signal 11"),
        ("quitting", "SystemExit: enough"),
        ("threaded", "importing it starts threads (worker)"),
    ],
)
def test_one_that_cannot_be_costs_only_itself(preloaded, asker, name, why):
    child = preloaded("noisy", name, "fine")
    assert child.facts.not_preloaded == {name: why}
    assert asker.ask(child, loaded, "noisy", "fine") == [True, True]


def test_several_that_cannot_be(preloaded, asker):
    names = ("killed", "fine", "threaded", "broken", "exiting")
    child = preloaded(*names)
    assert child.facts.not_preloaded.keys() == {
        "killed",
        "threaded",
        "broken",
        "exiting",
    }
    assert asker.ask(child, loaded, "fine") == [True]


def test_every_child_has_them(preloaded, asker):
    first, second = preloaded("fine", key="one"), preloaded("fine", key="one")
    assert tuple(asker.ask(first, where, "fine")) == (True, False)
    assert tuple(asker.ask(second, where, "fine")) == (True, False)
