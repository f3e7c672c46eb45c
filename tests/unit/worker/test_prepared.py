"""What is made once of the terms of many tasks."""

import os
from dataclasses import replace
from types import MappingProxyType

import pytest

from globus_compute_apptainer.worker.container import Facts
from globus_compute_apptainer.worker.message import Times
from globus_compute_apptainer.worker.prepared import Prepared, prepared
from globus_compute_apptainer.worker.terms import Terms

FACTS = Facts(MappingProxyType({"python_version": "3.11.2"}))


@pytest.fixture
def terms(order, tmp_path):
    return Terms(order, run_dir=str(tmp_path / "run"), endpoint_id="an id")


def test_it_is_made_once(terms):
    first = prepared(terms.to_wire())
    assert prepared(terms.to_wire()) is first
    other = replace(terms, run_in_sandbox=True)
    assert prepared(other.to_wire()) is not first


def test_folder_for_tasks(terms, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    known = Prepared(replace(terms, run_dir=str(tmp_path / "link" / "new")))
    assert known.run_dir == str(tmp_path / "real" / "new")
    assert (tmp_path / "real" / "new").is_dir()
    assert "cwd" not in known.header("id")
    assert known.header("id")["lasting"]["cwd"] == known.run_dir


def test_folder_of_a_task(terms):
    known = Prepared(replace(terms, run_in_sandbox=True))
    header = known.header("one")
    assert header["cwd"] == known.run_dir + "/one" == header["task"][SANDBOX]
    assert known.header("two")["lasting"] is header["lasting"]
    assert sorted(os.listdir(known.run_dir)) == ["one", "two"]


SANDBOX = "GC_TASK_SANDBOX_DIR"


def test_what_is_lasting_changes_with_the_environment(terms, monkeypatch):
    known = Prepared(terms)
    first = known.header("id")["lasting"]
    monkeypatch.setenv("NOT_PASSED", "1")
    same = known.header("id")["lasting"]
    assert same == first
    monkeypatch.setenv("PARSL_X", "1")
    other = known.header("id")["lasting"]
    assert other == {**first, "env": {**first["env"], "PARSL_X": "1"}}
    assert known.header("id")["lasting"] is other


def test_containers_are_shared_by_run_and_folder(terms, tmp_path):
    here, there = Prepared(terms), Prepared(replace(terms, run_dir=str(tmp_path / "b")))
    assert here.key != there.key
    assert here.key == Prepared(replace(terms, endpoint_id=None)).key


def test_details(terms, order):
    known = Prepared(terms)
    assert known.details(FACTS) == {
        "python_version": "3.11.2",
        "endpoint_id": "an id",
        "container": order.summary(),
    }
    failed = Facts(FACTS.details, {"numpy": "why"})
    found = known.details(failed)["container"]
    assert found == {**order.summary(), "not_preloaded": {"numpy": "why"}}


def test_the_form_is_of_the_container_that_answered(terms):
    known = Prepared(terms)
    assert known.form(FACTS) is known.form(FACTS)
    other = Facts({"python_version": "3.12.1"})
    times = Times(1, 2)
    id_ = "11111111-2222-3333-4444-555555555555"
    assert b"3.12.1" in known.form(other).fill(id_, "data", times)
    assert b"3.11.2" in known.form(FACTS).fill(id_, "data", times)
