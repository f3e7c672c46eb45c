"""Requirements files and those that they include."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.client import from_requirements
from globus_compute_apptainer.client.requirements import _Files
from globus_compute_apptainer.errors import SpecError


def test_included_files_are_read_relative_to_the_file(write) -> None:
    write("more/inner.txt", "rich\n-r deeper.txt\n")
    write("more/deeper.txt", "attrs # a comment\n--requirement=inner.txt\n")
    path = write(
        "requirements.txt",
        """\
        # what we need
        six==1.17.0 \\
            --hash=sha256:0123 --hash sha256:4567
        -r more/inner.txt
        --require-hashes
        """,
    )
    assert from_requirements(path) == {"pip": ["six==1.17.0", "rich", "attrs"]}
    found = from_requirements(str(path), python="3.12", skip=["Attrs"])
    assert found == {"python": "3.12", "pip": ["six==1.17.0", "rich"]}


def hashed(name: str, digit: str) -> str:
    return f"{name}==1.0 --hash=sha256:{digit * 64}"


def test_hashes_travel_where_all_have_them(write) -> None:
    lines = [hashed("six", "0") + " --hash sha256:" + "1" * 64, hashed("rich", "2")]
    path = write("r.txt", "\n".join(lines))
    text = f"{lines[0].replace('--hash ', '--hash=')}\n{lines[1]}\n"
    assert from_requirements(path) == {"files": {"requirements.txt": text}}
    pins = {"pip": ["six==1.0", "rich==1.0"]}
    assert from_requirements(path, hashes=False) == pins
    one = f"{hashed('rich', '2')}\n"
    found = from_requirements(path, skip=["six"])
    assert found == {"files": {"requirements.txt": one}}
    assert from_requirements(write("s.txt", f"{lines[0]}\nrich==1.0")) == pins


def test_constraints_on_what_is_required_join_it(write) -> None:
    write("c.txt", "Six<2\nrich==13 ; python_version < '3.12'\n")
    path = write("r.txt", "-c c.txt\nsix\nrich ; sys_platform == 'linux'\n")
    assert from_requirements(path)["pip"] == [
        "six",
        "rich ; sys_platform == 'linux'",
        "Six<2",
        'rich==13 ; (sys_platform == "linux") and (python_version < "3.12")',
    ]


def test_other_constraints_are_named_unless_skipped(write) -> None:
    write("c.txt", "six<2\nnumpy<2\n")
    path = write("r.txt", "six\n-cc.txt\n")
    with pytest.raises(SpecError) as caught:
        from_requirements(path)
    assert caught.value.code == "source-unsupported"
    assert "c.txt:2: numpy<2 (a constraint)" in caught.value.message
    assert "six" not in caught.value.message
    assert from_requirements(path, skip=["numpy"])["pip"] == ["six", "six<2"]


def test_all_that_cannot_be_carried_is_named_at_once(write) -> None:
    path = write(
        "r.txt",
        """\
        six
        -e .
        --index-url https://h/simple
        ./local
        ../wheels/a-1.0-py3-none-any.whl
        -r https://h/other.txt
        """,
    )
    with pytest.raises(SpecError) as caught:
        from_requirements(path)
    lines = caught.value.message.splitlines()[1:]
    assert [line.split(":", 2)[1] for line in lines] == ["2", "3", "4", "5", "6"]


def test_an_include_that_is_not_there(write, tmp_path) -> None:
    with pytest.raises(SpecError) as caught:
        from_requirements(write("r.txt", "-r none.txt"))
    assert str(tmp_path / "none.txt") in caught.value.message


def test_what_is_no_requirement_is_said_in_the_spec_s_words(write) -> None:
    with pytest.raises(SpecError) as caught:
        from_requirements(write("r.txt", "six = 1"))
    assert caught.value.field == "pip[0]"


@given(st.text("ab-rec=<> .#\\\n;:/\"'", max_size=60))
def test_any_line_is_read_or_refused(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text)
    with contextlib.suppress(SpecError):
        assert from_requirements(path)["pip"]


def test_a_file_that_includes_itself_ends(write) -> None:
    path = write("r.txt", "six\n-r r.txt\n")
    files = _Files(frozenset())
    files.read(path, constraints=False)
    assert [line for _, line in files.wanted] == ["six"]
