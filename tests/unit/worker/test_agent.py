"""What runs in a container, without a container around it."""

import ast
import sys
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import inside
from globus_compute_apptainer.worker.inside.agent import describe

SOURCES = sorted(Path(inside.__file__).parent.glob("*.py"))


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


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_syntax_of_old_pythons(source):
    ast.parse(source.read_text(), feature_version=(3, 8))


def test_imports_nothing_of_ours():
    names = {
        name.split(".")[0]
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or "" if not node.level else "." * node.level]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    ours = {"", "dill", "globus_compute_sdk", "gc_apptainer_inside"}
    assert names - sys.stdlib_module_names <= ours


def test_runs_functions(started, asker):
    container = started()
    assert asker.ask(container, add, 1) == 2
    assert "ValueError: on purpose" in asker.ask(container, fail)
    assert asker.ask(container, add, 2) == 3


def test_says_where_it_is(started):
    assert started().facts.details == {
        "os": __import__("platform").platform(),
        "python_version": __import__("platform").python_version(),
        "dill_version": __import__("dill").__version__,
        "globus_compute_sdk_version": "4.19.0",
    }


def test_library_is_last_on_the_path(started, asker, library):
    path = asker.ask(started(), search_path)
    assert path[-1] == str(library)
    assert str(library.parent / "ours") not in path


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


def test_unreadable_library(agent_launch, start, library):
    (library / "dill").unlink()
    with pytest.raises(TaskError) as caught:
        start(agent_launch())
    assert caught.value.code == "container-start-failed"
    assert caught.value.ended == "exit code 1"
    assert "No module named 'dill'" in "\n".join(caught.value.tail)


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
        text, (code, _) = describe(error)
    assert "in inner" in text and "in middle" in text and "in outer" not in text
    assert code == "RemoteExecutionError"


def test_description_of_an_internal_error():
    error = KeyError("k")
    assert describe(error, (KeyError,)) == (
        "KeyError('k')",
        ("KeyError", "remote error: 'k'"),
    )
