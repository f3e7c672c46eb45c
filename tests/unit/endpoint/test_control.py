"""Requests to the endpoint itself, and images named by the digest of their spec."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.engines import GCFuture
from globus_compute_sdk.serialize import ComputeSerializer, JSONData

from globus_compute_apptainer import events
from globus_compute_apptainer.endpoint import control
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.errors import BuildError, SpecError
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.spec.stored import image_of

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
OTHER = {**SPEC, "pip": ["numpy"]}
LONG = 60
Ask = Callable[..., Any]


def digest_of(spec: dict[str, Any]) -> str:
    image = model.parse(spec).image_spec(default_base="docker://x", python="3.11")
    return image.digest


def send(
    engine: ApptainerEngine, attached: object, serializers: list[str] | None = None
) -> GCFuture:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {"container": attached}, serializers)
    return future


@pytest.fixture
def ask(unpack_result) -> Ask:
    """The dictionary that a client's future would return."""

    def ask(engine: ApptainerEngine, action: str, **fields: Any) -> Any:
        future = send(engine, {"action": action, **fields})
        result = unpack_result(future.result(LONG))
        assert not result.is_error, result.data
        assert result.task_id == future.gc_task_id
        return ComputeSerializer().deserialize(result.data)

    return ask


@pytest.fixture
def code(unpack_result) -> Callable[..., str]:
    def code(engine: ApptainerEngine, attached: object) -> str:
        result = unpack_result(send(engine, attached).result(LONG))
        assert result.is_error, result.data
        return str(result.error_details.code)

    return code


# -- what is asked ----------------------------------------------------------------


@pytest.mark.parametrize("attached", [None, "name", 3, [], {}, SPEC, {"Action": 1}])
def test_other_values_are_no_control_requests(attached) -> None:
    assert control.parse(attached) is None


@pytest.mark.parametrize(
    ("attached", "field", "nearest"),
    [
        ({"action": "buid"}, "action", "build"),
        ({"action": None}, "action", ""),
        ({"action": ["list"]}, "action", "list"),
        ({"action": "status", "spce": SPEC}, "spce", "spec"),
        ({"action": "list", "spec": SPEC}, "spec", ""),
        ({"action": "log", "spec": SPEC, "lines": 0}, "lines", ""),
        ({"action": "log", "spec": SPEC, "lines": True}, "lines", ""),
        ({"action": "log", "spec": SPEC, "lines": "9"}, "lines", ""),
        ({"action": "build", "spec": SPEC, "force": 1}, "force", ""),
        ({"action": "build", "\ud800": 1}, "\ud800", ""),
    ],
)
def test_a_bad_request_is_refused_and_names_the_field(attached, field, nearest) -> None:
    with pytest.raises(SpecError) as caught:
        control.parse(attached)
    assert caught.value.field == field
    assert caught.value.nearest == nearest
    assert caught.value.code == "spec-invalid"


def test_a_refused_request_ends_the_task_and_the_engine_is_well(engine, code) -> None:
    assert code(engine, {"action": "lst"}) == "spec-invalid"
    assert code(engine, {"action": "status"}) == "spec-invalid"
    assert code(engine, {"action": "build", "spec": {"pip": 3}}) == "spec-invalid"
    assert code(engine, {"action": "log", "spec": "nope"}) == "image-unknown"
    assert send(engine, SPEC).result(LONG) == b"the result"


@pytest.mark.parametrize("action", ["build", "status", "log", "cancel"])
def test_policy_decides_what_may_be_asked_about(engine, code, action) -> None:
    forbidden = {"action": action, "spec": {**SPEC, "post": ["id"]}}
    assert code(engine, forbidden) == "policy-denied"


def test_no_worker_is_used(engine, executor, ask) -> None:
    for action in ("build", "status", "log", "cancel"):
        ask(engine, action, spec=SPEC)
    ask(engine, "list")
    assert executor.handed == []


def test_answers_come_in_what_the_client_reads(engine, unpack_result) -> None:
    kinds = ["globus_compute_sdk.serialize.JSONData"]
    result = unpack_result(send(engine, {"action": "list"}, kinds).result(LONG))
    assert result.data.startswith(JSONData.identifier)


# -- what is answered -------------------------------------------------------------


def test_build_answers_when_the_image_is_ready(engine, ask, builder) -> None:
    builder.gate.clear()
    future = send(engine, {"action": "build", "spec": SPEC})
    assert not future.done()
    builder.gate.set()
    future.result(LONG)
    answer = ask(engine, "build", spec=SPEC)
    assert answer["state"] == "ready"
    assert answer["cache"] == "hit"
    assert answer["spec_digest"] == digest_of(SPEC)
    assert answer["image"]["image_digest"].startswith("sha256:")
    assert answer["image"]["base"] == "python:3.11-slim"
    assert len(builder.builds) == 1


def test_build_waits_like_a_task_and_outlives_a_kill(engine, builder, tmp_path) -> None:
    builder.gate.clear()
    send(engine, {"action": "build", "spec": SPEC})
    assert len(list((tmp_path / "waiting_tasks").iterdir())) == 1
    assert engine.get_status_report().global_state["containers"]["waiting_tasks"] == 1
    builder.gate.set()


def test_build_by_force_builds_again(engine, ask, builder) -> None:
    assert ask(engine, "build", spec=SPEC)["cache"] == "built"
    assert ask(engine, "build", spec=SPEC, force=True)["cache"] == "built"
    assert len(builder.builds) == 2


def test_a_build_that_fails_is_the_builds_own_error(engine, code, builder) -> None:
    builder.error = BuildError("no", stage="pip", code="package-not-found")
    assert code(engine, {"action": "build", "spec": SPEC}) == "package-not-found"


def test_status_follows_an_image(engine, ask, builder) -> None:
    assert ask(engine, "status", spec=SPEC) == {
        "spec_digest": digest_of(SPEC),
        "state": "absent",
        "waiting_tasks": 0,
        "image": None,
    }
    builder.gate.clear()
    futures = [send(engine, SPEC) for _ in range(3)]
    assert builder.begun.wait(LONG)
    building = ask(engine, "status", spec=SPEC)
    assert building["state"] == "building"
    assert building["waiting_tasks"] == 3
    builder.gate.set()
    for future in futures:
        future.result(LONG)
    ready = ask(engine, "status", spec=SPEC)
    assert ready["state"] == "ready"
    assert ready["image"]["spec_digest"] == digest_of(SPEC)
    json.dumps(ready)


def test_status_names_stage_and_error(make_engine, ask, builder, monkeypatch) -> None:
    engine = make_engine()
    progress = engine._controls._progress
    builder.gate.clear()
    builder.error = BuildError("no", stage="pip", code="package-not-found")
    future = send(engine, SPEC)
    assert builder.begun.wait(LONG)
    digest = digest_of(SPEC)
    progress(events.StageStarted(digest, "pip"))
    progress(events.OutputLine(digest, "collecting"))
    building = ask(engine, "status", spec=SPEC)
    assert (building["state"], building["stage"]) == ("building", "pip")
    assert building["seconds"] >= 0
    assert ask(engine, "log", spec=SPEC)["lines"] == ["collecting"]
    builder.gate.set()
    future.result(LONG)
    progress(events.BuildFinished(digest, 1.0, "package-not-found"))
    failed = ask(engine, "status", spec=SPEC)
    assert (failed["state"], failed["error"]) == ("failed", "package-not-found")
    assert failed["stage"] == "pip"


def test_the_log_of_a_stored_image_is_read_from_its_file(
    engine, ask, builder, tmp_path
) -> None:
    send(engine, SPEC).result(LONG)
    (manifest,) = (tmp_path / "cache").rglob("index/*/*/*.json")
    log = Path(json.loads(manifest.read_text())["log"])
    assert ask(engine, "log", spec=SPEC)["lines"] == []
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    assert ask(engine, "log", spec=SPEC)["lines"][0] == "line 40"
    assert ask(engine, "log", spec=SPEC, lines=2)["lines"] == ["line 98", "line 99"]
    assert len(ask(engine, "log", spec=SPEC, lines=10**9)["lines"]) == 100


def test_list_names_what_a_client_may_have(make_engine, ask, builder, executor) -> None:
    admins = {**SPEC, "post": ["admin's line"]}
    first = make_engine({"policy": {"allow_post": True}, "images": {"ml": admins}})
    for spec in (SPEC, {**SPEC, "post": ["id"]}, "ml"):
        send(first, spec).result(LONG)
    assert len(ask(first, "list")["images"]) == 3
    first.shutdown()
    second = make_engine({"images": {"ml": admins}})
    answer = ask(second, "list")
    assert {i["spec_digest"] for i in answer["images"]} == {
        digest_of(SPEC),
        digest_of(admins),
    }
    assert answer["names"] == ["ml"]
    assert answer["left_out"] == 0
    assert str(second._config.cache_dir) not in json.dumps(answer)


def test_cancel_ends_waiting_tasks_and_the_build(engine, ask, builder, code) -> None:
    builder.gate.clear()
    futures = [send(engine, SPEC) for _ in range(3)]
    other = send(engine, OTHER)
    assert builder.begun.wait(LONG)
    assert ask(engine, "cancel", spec=SPEC)["cancelled"] == 3
    assert {_code(f) for f in futures} == {"build-cancelled"}
    assert ask(engine, "cancel", spec=SPEC)["cancelled"] == 0
    assert not other.done()
    builder.gate.set()
    assert other.result(LONG) == b"the result"
    assert send(engine, SPEC).result(LONG) == b"the result"  # built anew


def _code(future: GCFuture) -> str:
    from globus_compute_common import messagepack

    return str(messagepack.unpack(future.result(LONG)).error_details.code)


# -- images by the digest of their spec -------------------------------------------


def test_an_image_in_the_cache_is_had_by_its_spec_digest(
    engine, make_engine, executor
) -> None:
    send(engine, SPEC).result(LONG)
    engine.shutdown()
    again = make_engine()  # which has not seen the spec
    assert send(again, digest_of(SPEC)).result(LONG) == b"the result"
    order = json.loads(executor.handed[-1][0]["task_executor"]["a"][1])["order"]
    assert order["spec_digest"] == digest_of(SPEC)
    assert order["cache"] == "hit"


def test_a_digest_can_be_used_while_its_image_is_built(engine, builder) -> None:
    builder.gate.clear()
    futures = [send(engine, SPEC), send(engine, digest_of(SPEC))]
    builder.gate.set()
    assert [f.result(LONG) for f in futures] == [b"the result"] * 2
    assert len(builder.builds) == 1


def test_policy_binds_what_others_have_made(engine, make_engine, code) -> None:
    spec = {**SPEC, "apt": ["tree"]}
    send(engine, spec).result(LONG)
    engine.shutdown()
    strict = make_engine({"policy": {"allow_apt": False}})
    assert code(strict, digest_of(spec)) == "policy-denied"
    strict.shutdown()
    named = make_engine({"policy": {"allow_apt": False}, "images": {"tools": spec}})
    assert send(named, digest_of(spec)).result(LONG) == b"the result"


def test_the_endpoints_own_base_is_allowed_by_digest_too(make_engine) -> None:
    engine = make_engine({"policy": {"base_images": []}})
    spec = {"pip": ["pandas"], "python": "3.11"}
    send(engine, spec).result(LONG)
    engine.shutdown()
    again = make_engine({"policy": {"base_images": []}})
    default = again._config.default_base.replace("{python}", "3.11")
    assert send(again, digest_of({**spec, "base_image": default})).result(LONG)
    with_this = again._requests.wanted(digest_of({**spec, "base_image": default}))
    assert with_this is not None


def test_a_manifest_that_is_not_what_its_digest_says_counts_for_nothing(
    engine, make_engine, code, tmp_path
) -> None:
    send(engine, SPEC).result(LONG)
    engine.shutdown()
    (entry,) = (tmp_path / "cache").rglob("index/*/*/*.json")
    manifest = json.loads(entry.read_text())
    manifest["spec"]["pip"] = ["something-else"]
    entry.write_text(json.dumps(manifest))
    assert code(make_engine(), digest_of(SPEC)) == "digest-unknown"


FULL = {
    "base_image": "python:3.11-slim",
    "pip": ["pandas"],
    "apt": ["tree"],
    "conda": {
        "channels": ["bioconda", "conda-forge"],
        "dependencies": ["samtools=1.2", "pip", {"pip": ["numpy"]}],
        "variables": {"A": "1"},
    },
    "payload_url": "https://example.org/it.zip",
    "post": ["true"],
    "build_env": {"B": "2"},
}


@pytest.mark.parametrize(
    "spec", [SPEC, FULL, {"files": {"apt.txt": "tree\n", "postBuild": "#!/bin/sh\n"}}]
)
def test_the_canonical_form_leads_back(spec) -> None:
    image = model.parse(spec).image_spec(
        default_base="docker://python:{python}", python="3.11"
    )
    assert image_of(json.loads(image.canonical()), image.digest) == image


@pytest.mark.parametrize(
    "canonical",
    [{}, {"agent": 1}, {"agent": "docker", "base_image": "x", "files": [1]}],
)
def test_what_is_not_canonical_is_nothing(canonical) -> None:
    assert image_of(canonical, "sha256:" + "0" * 64) is None
