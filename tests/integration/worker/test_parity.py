"""A task in a container gives what the stock engine gives, byte for byte.

The same packed message goes through the stock ``execute_task`` and through ours. Only
paths of files may differ in the texts of errors, and line numbers in upstream's files.
"""

from __future__ import annotations

import functools
import re
import types

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, TaskCancel
from globus_compute_common.tasks import ActorName, TaskState
from globus_compute_sdk import MPIFunction, ShellFunction
from globus_compute_sdk.errors import SerdeError
from globus_compute_sdk.serialize import AllCodeStrategies, DillCode

pytestmark = pytest.mark.apptainer

JSON = "globus_compute_sdk.serialize.JSONData"
DILL = "globus_compute_sdk.serialize.DillDataBase64"


def same_text(text: str) -> str:
    """The text without the places of files and the depth of the caller's stack."""
    text = re.sub(r"line repeated \d+ more times", "line repeated", text)
    text = re.sub(r'File "(?!<)[^"]*?([^/"]+)", line \d+', r'File "\1"', text)
    for upstream in ("helper.py", "python.py"):
        text = text.replace(f'File "{upstream}"', 'File "agent.py"')
    return text.replace('File "runner.py"', 'File "agent.py"')


def assert_same(ours: Result, stock: Result) -> None:
    assert same_text(ours.data) == same_text(stock.data)
    assert ours.task_id == stock.task_id
    assert ours.error_details == stock.error_details
    assert ours.is_error == stock.is_error
    assert ours.details and stock.details
    assert ours.details.keys() - {"container"} == stock.details.keys()
    ours_states, stock_states = (
        [(t.state, t.actor) for t in result.task_statuses or ()]
        for result in (ours, stock)
    )
    assert ours_states == stock_states


def from_main(function):
    """The function as a client's script defines it: to be sent by value."""
    code = function.__code__.replace(co_filename="/home/of/client/script.py")
    parts = (code, {"__name__": "__main__"}, function.__name__)
    return types.FunctionType(*parts, function.__defaults__)


def add(a, b=1):
    return a + b


def nothing():
    pass


def many_types():
    import datetime
    import decimal

    return [
        *(None, True, 1.5, "ünïcode \U0001f600", b"\x00\xff", {1: (2, {3})}),
        *(datetime.date(2024, 2, 29), decimal.Decimal("1.10"), float("inf")),
    ]


def returns_function():
    def inner(x):
        return x + 1

    return inner


def large(size):
    return "x" * size


def raises():
    raise ValueError("böse \U0001f600\nsecond line")


def raises_deep():
    def outer():
        inner()

    def inner():
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("wrapped") from error

    outer()


def raises_own_class():
    class OwnError(Exception):
        def __str__(self):
            return "own text"

    raise OwnError(1, 2)


def raises_in_library():
    import json

    json.loads("{")


def raises_group():
    raise ExceptionGroup("several", [ValueError(1), TypeError(2)])  # noqa: F821


def raises_size_error():
    from globus_compute_sdk.errors import MaxResultSizeExceeded

    raise MaxResultSizeExceeded(2, 1)


def imports_missing():
    import no_such_module_anywhere  # noqa: F401


def asserts():
    assert 1 == 2, "one is not two"


def recurses():
    recurses()


def unpicklable():
    import threading

    return threading.Lock()


def generator():
    return (i for i in range(3))


def syntax():
    exec("def f(:\n pass")


def where():
    import os

    return (
        os.getcwd(),
        os.environ.get("GC_TASK_SANDBOX_DIR"),
        os.environ["GC_TASK_UUID"],
        os.environ.get("GC_TASK_TIMEOUT"),
    )


def in_threads():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        return sorted(pool.map(lambda x: x * x, range(20)))


def spin():
    while True:
        pass


def swallows_timeout():
    for _ in range(2):
        try:
            while True:
                pass
        except BaseException as error:
            return type(error).__module__, type(error).__name__, str(error)
    return None


CASES = {
    "value": (add, 1),
    "none": (nothing,),
    "types": (many_types,),
    "function": (returns_function,),
    "8 MB": (large, 8_000_000),
    "one over the limit": (large, 10 * 1024 * 1024),
    "exception": (raises,),
    "chained exception": (raises_deep,),
    "own exception": (raises_own_class,),
    "exception in a library": (raises_in_library,),
    "exception group": (raises_group,),
    "the engine's own exception": (raises_size_error,),
    "import error": (imports_missing,),
    "assertion": (asserts,),
    "recursion": (recurses,),
    "unpicklable result": (unpicklable,),
    "generator": (generator,),
    "syntax error": (syntax,),
    "missing argument": (add,),
    "surplus argument": (nothing, 1, 2),
    "threads": (in_threads,),
    "places": (where,),
    "no name": (functools.partial(int, "7"),),
}


@pytest.mark.parametrize("case", CASES)
def test_same_result(inside, stock, packed, case):
    message = packed(*CASES[case])
    assert_same(inside.message(*message), stock(*message))


@pytest.mark.parametrize("case", ["value", "exception", "missing argument"])
@pytest.mark.parametrize("code", [DillCode, AllCodeStrategies])
def test_same_result_for_other_code_strategies(inside, stock, packed, case, code):
    function, *args = CASES[case]
    if code is DillCode:
        function = from_main(function)
    message = packed(function, *args, code=code())
    assert_same(inside.message(*message), stock(*message))


@pytest.mark.parametrize("name", ["", "f", "unknown"])
def test_unknown_keyword(inside, stock, packed, name):
    message = packed(add, 1, **{name: 2})
    assert_same(inside.message(*message), stock(*message))


@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize(
    "function", [where, ShellFunction("pwd; echo $GC_TASK_SANDBOX_DIR")]
)
def test_sandbox(inside, stock, packed, value_of, sandbox, function):
    message = packed(function)
    ours, theirs = (
        value_of(run(*message, run_in_sandbox=sandbox))
        for run in (inside.message, stock)
    )
    if function is where:
        assert ours == theirs
        assert (str(message[1]) in ours[0]) == sandbox
    else:
        assert vars(ours) == vars(theirs)


SHELL = {
    "output": ShellFunction("echo out {word}; echo err >&2"),
    "failure": ShellFunction("echo before {word}; exit 7"),
    "missing program": ShellFunction("no-such-program {word}"),
    "walltime": ShellFunction("echo {word}; sleep 30", walltime=0.3),
    "dictionary": ShellFunction("echo {word}", return_dict=True),
    "lines": ShellFunction("seq 2000; echo {word}", snippet_lines=3),
    "mpi": MPIFunction("echo {word}"),
    "unformattable": ShellFunction("echo {other}"),
}


@pytest.mark.parametrize("case", SHELL)
def test_shell_functions(inside, stock, packed, case):
    message = packed(SHELL[case], word="wört")
    options = {"run_in_sandbox": True}
    assert_same(inside.message(*message, **options), stock(*message, **options))


def test_shell_result_can_be_read(inside):
    result = inside.value(ShellFunction("echo $0; exit 3"))
    assert type(result).__module__ == "globus_compute_sdk.sdk.shell_function"
    assert (result.returncode, result.stdout) == (3, "/bin/bash\n")


@pytest.mark.parametrize("size", [100, 127, 128, 1000])
def test_result_size_limit(inside, stock, packed, size):
    message = packed(large, size)
    options = {"result_size_limit": 200}
    assert_same(inside.message(*message, **options), stock(*message, **options))


@pytest.mark.parametrize("seconds", ["0", "-1", "0.2", "60", "many", ""])
def test_timeout_of_short_task(inside, stock, packed, monkeypatch, seconds):
    monkeypatch.setenv("GC_TASK_TIMEOUT", seconds)
    message = packed(add, 1)
    assert_same(inside.message(*message), stock(*message))


@pytest.mark.parametrize("function", [spin, swallows_timeout])
def test_timeout_of_long_task(inside, stock, packed, monkeypatch, function):
    monkeypatch.setenv("GC_TASK_TIMEOUT", "0.2")
    message = packed(function)
    assert_same(inside.message(*message), stock(*message))


def test_timeout_does_not_strike_the_next_task(inside, monkeypatch):
    monkeypatch.setenv("GC_TASK_TIMEOUT", "0.2")
    assert "parsl.app.errors.AppTimeout" in inside.result(spin).data
    monkeypatch.delenv("GC_TASK_TIMEOUT")
    assert [inside.value(add, n) for n in range(50)] == list(range(1, 51))


@pytest.mark.parametrize(
    "serializers",
    [[JSON], [JSON, DILL], [DILL], ["globus_compute_sdk.serialize.Unknown"], []],
)
@pytest.mark.parametrize("case", ["value", "types", "exception", "function"])
def test_result_serializers(inside, stock, packed, serializers, case):
    message = packed(*CASES[case])
    options = {"result_serializers": serializers}
    assert_same(inside.message(*message, **options), stock(*message, **options))


@pytest.mark.parametrize(
    "allowed",
    [
        ["globus_compute_sdk.serialize.DillCode", JSON],
        ["globus_compute_sdk.serialize.DillCode", DILL],
        ["globus_compute_sdk.*Code", DILL],
        ["globus_compute_sdk.*Code", "globus_compute_sdk.*Data"],
    ],
)
def test_allowed_deserializers(inside, stock, packed, allowed):
    message = packed(add, 1)
    options = {"task_deserializers": allowed}
    assert_same(inside.message(*message, **options), stock(*message, **options))


@pytest.mark.parametrize("allowed", [["no.such.Thing"], [DILL]])
def test_malformed_allow_list_is_raised(inside, stock, packed, allowed):
    message = packed(add, 1)
    with pytest.raises(SerdeError) as ours:
        inside.message(*message, task_deserializers=allowed)
    with pytest.raises(SerdeError) as theirs:
        stock(*message, task_deserializers=allowed)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("what", ["another message", "garbage", "nothing"])
def test_what_is_not_a_task(inside, stock, packed, what):
    _, task_id = packed(nothing)
    message = {
        "another message": messagepack.pack(TaskCancel(task_id=task_id)),
        "garbage": b"\x01garbage",
        "nothing": b"",
    }[what]
    ours, theirs = (run(message, task_id) for run in (inside.message, stock))
    assert_same(ours, theirs)
    assert ours.is_error


@pytest.mark.parametrize(
    "options", [{"run_dir": "relative/path"}, {"result_size_limit": 127}]
)
def test_bad_arguments_are_raised(inside, stock, packed, options):
    message = packed(nothing)
    with pytest.raises(ValueError) as ours:
        inside.message(*message, **options)
    with pytest.raises(ValueError) as theirs:
        stock(*message, **options)
    assert str(ours.value) == str(theirs.value)


def test_malformed_buffer(inside, stock, packed):
    from globus_compute_common.messagepack.message_types import Task

    _, task_id = packed(nothing)
    for buffer in ("", "3\nabc", "zz", "5\n01\nab"):
        message = messagepack.pack(Task(task_id=task_id, task_buffer=buffer))
        assert_same(inside.message(message, task_id), stock(message, task_id))


def test_details_come_from_inside(inside, order):
    result = inside.result(nothing)
    assert result.details["python_version"] == "3.11.2"
    assert result.details["container"] == order.summary()
    assert str(result.details["endpoint_id"]).startswith("11111111-")
    assert "glibc" in result.details["os"]
    start, end = result.task_statuses
    assert (start.state, end.state) == (TaskState.EXEC_START, TaskState.EXEC_END)
    assert start.actor == end.actor == ActorName.WORKER
    assert 0 < end.timestamp - start.timestamp < 120e9
