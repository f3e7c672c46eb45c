"""The agent as a process of its own, driven through its pipes."""

import ast
import sys
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import agent


def add(a, b=1):
    return a + b


def search_path():
    import sys

    return sys.path


def variables(*names):
    import os

    return [os.environ.get(name) for name in names]


def fail():
    raise ValueError("on purpose")


def test_syntax_of_old_pythons():
    source = Path(agent.__file__).read_text()
    ast.parse(source, feature_version=(3, 8))


def test_imports_nothing_of_ours():
    tree = ast.parse(Path(agent.__file__).read_text())
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or "." * node.level]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert names - sys.stdlib_module_names == {"dill", "globus_compute_sdk"}


def test_runs_functions(started, asker):
    container = started()
    assert asker.ask(container, add, 1) == 2
    assert "ValueError: on purpose" in asker.ask(container, fail)
    assert asker.ask(container, add, 2) == 3


def test_says_where_it_is(started):
    assert started().details == {
        "os": __import__("platform").platform(),
        "python_version": __import__("platform").python_version(),
        "dill_version": __import__("dill").__version__,
        "globus_compute_sdk_version": "4.19.0",
    }


def test_library_is_last_on_the_path(started, asker, library):
    path = asker.ask(started(), search_path)
    assert path[-1] == str(library)
    assert str(Path(agent.__file__).parent) not in path


def test_dill_of_the_image_wins(started, asker, library, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "dill").symlink_to((library / "dill").resolve())

    def place():
        import dill

        return dill.__file__

    found = asker.ask(started(PYTHONPATH=str(site)), place)
    assert found.startswith(str(site))


def test_sdk_of_the_image_does_not_win(started, asker, tmp_path):
    other = tmp_path / "site" / "globus_compute_sdk"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('heavy')\n")

    def use():
        from globus_compute_sdk import ShellFunction

        return ShellFunction("true").cmd

    assert asker.ask(started(PYTHONPATH=str(other.parent)), use) == "true"


def test_variables_come_and_go(started, asker):
    container = started(FIXED="1")
    names = ("FIXED", "A", "B")
    assert asker.ask(container, variables, *names, env={"A": "1"}) == ["1", "1", None]
    assert asker.ask(container, variables, *names, env={"B": "2"}) == ["1", None, "2"]


def test_folder_that_is_not_there(started, asker):
    container = started()
    header = asker.header(cwd="/no/such/folder")
    answer, _ = container.ask(header, asker.body(add, 1))
    assert answer["kind"] == "no-folder"
    assert "/no/such/folder" in answer["reason"]
    assert asker.ask(container, add, 1) == 2


def test_unreadable_library(agent_launch, library):
    from globus_compute_apptainer.worker.container import Container

    (library / "dill").unlink()
    with pytest.raises(TaskError) as caught:
        Container(agent_launch(), 60)
    assert caught.value.code == "container-start-failed"
    assert caught.value.ended == "exit code 1"
    assert "No module named 'dill'" in "\n".join(caught.value.tail)


def test_nothing_is_killed_where_no_namespace_is_known():
    assert agent.members("") == agent.members("mnt:[0]") == set()


def test_what_tasks_leave_becomes_the_guards_and_is_reaped(started, asker):
    def leave():
        import os
        import subprocess
        import time

        subprocess.run(["setsid", "-f", "true"], check=True)
        guard = os.getppid()
        for _ in range(1000):
            with open(f"/proc/{guard}/task/{guard}/children") as children:
                found = children.read().split()
            if found == [str(os.getpid())]:
                break
            time.sleep(0.01)
        return len(found)

    assert asker.ask(started(), leave) == 1


def test_description_leaves_out_two_calls():
    def outer():
        middle()

    def middle():
        inner()

    def inner():
        raise ValueError("x")

    try:
        outer()
    except ValueError as error:
        text, (code, _) = agent.describe(error)
    assert "in inner" in text and "in middle" in text and "in outer" not in text
    assert code == "RemoteExecutionError"


def test_description_of_an_internal_error():
    error = KeyError("k")
    assert agent.describe(error, (KeyError,)) == (
        "KeyError('k')",
        ("KeyError", "remote error: 'k'"),
    )
