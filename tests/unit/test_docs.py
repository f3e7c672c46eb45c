"""The reference says what the code does: no code, key or field is left out."""

from __future__ import annotations

import re
from pathlib import Path

from globus_compute_apptainer.spec import names

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))


def documented(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (REFERENCE / page).read_text()))


def test_every_error_code_is_documented() -> None:
    codes = set(re.findall(r"code(?:: str)? ?= ?\"([a-z]+(?:-[a-z]+)+)\"", SOURCES))
    table = (ROOT / "src/globus_compute_apptainer/build/diagnose.py").read_text()
    codes |= set(re.findall(r'^ {8}"([a-z]+(?:-[a-z]+)+)",$', table, re.MULTILINE))
    stages = (ROOT / "src/globus_compute_apptainer/build/system/stages.sh").read_text()
    emitted = set(re.findall(r"\bfail [a-z]+ ([a-z]+(?:-[a-z]+)+) ", stages))
    assert "no-apt" in emitted
    codes |= emitted
    assert len(codes) > 25
    assert codes - documented("errors.md") == set()


def test_every_field_of_a_spec_is_documented() -> None:
    known = {*names.FIELDS, *names.ALIASES, *names.IGNORED}
    assert known - {"conda_packages"} - documented("spec.md") == set()


def test_every_configuration_key_is_documented() -> None:
    folder = ROOT / "src/globus_compute_apptainer/config"
    text = "\n".join(path.read_text() for path in folder.glob("*.py"))
    taken = set(re.findall(r'\.take\(\s*"(\w+)"', text)) | set(
        re.findall(r'\("(\w+)", default\.', text)
    )
    assert len(taken) > 15
    said = {key.rpartition(".")[2] for key in documented("configuration.md")}
    assert taken - said == set()


def test_every_promise_is_shown_by_a_test_that_exists() -> None:
    page = (ROOT / "docs/explanation/promises.md").read_text()
    named = set(re.findall(r"`(test_\w+|TestModel)`", page))
    assert len(named) > 30
    sources = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^\s*def (test_\w+)\(", sources, re.MULTILINE))
    there |= set(re.findall(r"^(Test\w+) = ", sources, re.MULTILINE))
    assert named - there == set()


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
