"""One build per spec, whoever asks, and no request without an answer."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import threading
from concurrent.futures import wait
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Order
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError, ContainerError, HostError
from globus_compute_apptainer.images import TRANSITIONS, ImageService, State
from globus_compute_apptainer.images.request import Request
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.store.cache import Store


def image(*pip: str) -> model.ImageSpec:
    spec = model.parse({"base_image": "python:3.11-slim", "pip": list(pip)})
    return spec.image_spec(default_base="docker://x", python="3.11")


@pytest.fixture
def service(tmp_path: Path, builder: Any):
    made = make_service(tmp_path, builder)
    yield made
    made.close()


def make_service(tmp_path: Path, builder: Any, **kwargs: Any) -> ImageService:
    config = BuildConfig(tmp_dir=tmp_path)
    return ImageService(Store(tmp_path / "cache"), lambda: builder, config, **kwargs)


def test_a_missing_image_is_built_and_then_a_hit(service, builder) -> None:
    spec = image("pandas")
    assert service.cached(spec.digest) is None
    ready = service.request(spec, name="ml").result(30)
    assert ready.cache == "built"
    assert ready.image.path.is_file()
    assert ready.image.manifest.spec_digest == spec.digest
    assert ready.image.manifest.name == "ml"
    again = service.cached(spec.digest)
    assert again is not None
    assert again.cache == "hit"
    assert again.image == ready.image
    assert builder.builds == [spec.digest]


def test_requests_while_a_build_runs_share_it(service, builder) -> None:
    builder.gate.clear()
    futures = [service.request(image("pandas")) for _ in range(50)]
    builder.gate.set()
    outcomes = [future.result(30).cache for future in futures]
    assert outcomes == ["built"] + ["shared"] * 49
    assert len(builder.builds) == 1


def test_a_request_can_be_looked_at(service, builder) -> None:
    digest = image("pandas").digest
    assert service.standing(digest) is None
    builder.gate.clear()
    futures = [service.request(image("pandas")) for _ in range(3)]
    poll(lambda: service.standing(digest) == ("building", 3))
    builder.gate.set()
    assert {f.result(30).image.manifest.spec_digest for f in futures} == {digest}
    poll(lambda: service.standing(digest) is None)
    assert [i.manifest.spec_digest for i in service.stored()] == [digest]


def test_a_cancelled_request_fails_at_once_and_the_next_one_is_served(
    service, builder
) -> None:
    builder.gate.clear()
    futures = [service.request(image("pandas")) for _ in range(3)]
    other = service.request(image("numpy"))
    poll(lambda: len(builder.builds) == 2)
    assert service.cancel(image("pandas").digest) == 3
    for future in futures:
        with pytest.raises(BuildError) as caught:
            future.result(0)
        assert caught.value.code == "build-cancelled"
    again = service.request(image("pandas"))
    assert service.cancel(image("scipy").digest) == 0
    builder.gate.set()
    assert again.result(30).cache == "built"
    assert other.result(30).cache == "built"


def test_what_was_cancelled_does_not_outlive_the_service(service, builder) -> None:
    builder.gate.clear()
    service.request(image("pandas"))
    poll(lambda: builder.builds)
    service.cancel(image("pandas").digest)
    service.close()  # would wait for the gate


def test_different_images_build_side_by_side_up_to_the_bound(service, builder) -> None:
    builder.gate.clear()
    futures = [service.request(image(name)) for name in ("a1", "b1", "c1")]
    poll(lambda: len(builder.builds) == 2)
    counts = service.counts()
    assert (counts["building"], counts["queued"], counts["waiting_tasks"]) == (2, 1, 3)
    builder.gate.set()
    assert {f.result(30).cache for f in futures} == {"built"}
    assert service.counts()["built"] == 3


def test_an_image_that_came_meanwhile_is_taken(service, tmp_path, builder) -> None:
    """As when another process built it between the look-up and the lock."""
    spec = image("pandas")
    service.request(spec).result(30)
    assert service.request(spec).result(30).cache == "shared"
    assert len(builder.builds) == 1
    assert service.counts()["built"] == 1


def test_a_failure_reaches_all_who_wait(service, builder) -> None:
    builder.gate.clear()
    builder.error = BuildError("boom", stage="pip", code="disk-full")
    futures = [service.request(image("pandas")) for _ in range(3)]
    builder.gate.set()
    for future in futures:
        with pytest.raises(BuildError, match="boom"):
            future.result(30)
    builder.error = None
    assert service.request(image("pandas")).result(30).cache == "built"
    assert service.counts()["failed"] == 1


def test_nothing_is_left_in_the_scratch_space(service, builder, tmp_path) -> None:
    service.request(image("pandas")).result(30)
    builder.error = BuildError("boom")
    with pytest.raises(BuildError):
        service.request(image("numpy")).result(30)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_no_builder_no_image_and_a_typed_error(tmp_path) -> None:
    def missing() -> Any:
        raise HostError("no Apptainer", code="apptainer-missing")

    service = ImageService(
        Store(tmp_path / "c"), missing, BuildConfig(tmp_dir=tmp_path)
    )
    with pytest.raises(HostError):
        service.request(image("pandas")).result(30)
    service.close()


def test_closing_answers_everybody(service, builder) -> None:
    builder.gate.clear()
    futures = [service.request(image(f"p{n}")) for n in range(6)]
    assert builder.begun.wait(10)
    service.close()
    assert not wait(futures, 0).not_done
    for future in futures:
        assert isinstance(future.exception(), BuildError)
    late = service.request(image("late"))
    assert isinstance(late.exception(0), BuildError)
    service.close()


def test_closing_races_with_requests_and_loses_none(tmp_path, builder) -> None:
    for round_ in range(20):
        service = make_service(tmp_path / str(round_), builder)
        futures: list[Any] = []
        start = threading.Barrier(3)

        def ask(service=service, futures=futures, start=start) -> None:
            start.wait()
            futures.extend(service.request(image(f"p{n}")) for n in range(5))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        (tmp_path / str(round_)).mkdir()
        for thread in threads:
            thread.start()
        start.wait()
        service.close()
        for thread in threads:
            thread.join()
        assert len(futures) == 10
        assert not wait(futures, 10).not_done


def test_events_are_told_and_a_broken_sink_does_not_stop_a_build(
    tmp_path, builder
) -> None:
    seen: list[events.Event] = []

    def sink(event: events.Event) -> None:
        seen.append(event)
        raise ZeroDivisionError

    service = make_service(tmp_path, builder, sink=sink)
    spec = image("pandas")
    assert service.request(spec).result(30).cache == "built"
    service.close()
    assert isinstance(seen[-1], events.BuildFinished)
    assert (seen[-1].digest, seen[-1].error) == (spec.digest, "")


def test_waiting_tasks_are_answered_before_a_build_that_does_not_stop(
    tmp_path, builder
) -> None:
    """A user endpoint has seconds to stop; its answers must not wait for a build."""
    gate = threading.Event()

    class Stubborn(type(builder)):
        def build(self, order, place, **kwargs):  # cancel is not heeded
            self.begun.set()
            assert gate.wait(30)
            return super().build(order, place, **kwargs)

    stubborn = Stubborn()
    service = make_service(tmp_path, stubborn)
    futures = [service.request(image(name)) for name in ("a1", "a1", "b1", "c1", "d1")]
    assert stubborn.begun.wait(10)
    closing = threading.Thread(target=service.close)
    closing.start()
    assert not wait(futures, 10).not_done
    assert closing.is_alive()
    assert {f.exception().code for f in futures} == {"endpoint-stopped"}
    gate.set()
    closing.join(30)
    assert not closing.is_alive()


def test_a_machine_without_room_for_a_thread_fails_the_request_and_no_other(
    service, builder, monkeypatch
) -> None:
    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        failed = service.request(image("pandas"))
        assert isinstance(failed.exception(0), ContainerError)
    assert service.counts()["queued"] == 0
    assert service.request(image("pandas")).result(30).image.path.is_file()


def test_waiting_for_another_processs_build_holds_up_no_build_of_ours(
    service, builder, tmp_path
) -> None:
    elsewhere, never = Store(tmp_path / "cache"), threading.Event()
    elsewhere.prepare()
    held = [image("a1"), image("b1"), image("c1")]
    with contextlib.ExitStack() as locks:
        for spec in held:
            locks.enter_context(elsewhere.lock(spec.digest, cancel=never))
        waiting = [service.request(spec) for spec in held]
        assert service.request(image("free")).result(30).cache == "built"
        assert not any(future.done() for future in waiting)
    assert {future.result(30).cache for future in waiting} == {"built"}


def test_a_lock_that_is_never_released_ends_the_request(tmp_path, builder) -> None:
    """As of a `gc-apptainer build` that somebody stopped with Ctrl-Z."""
    store, never = Store(tmp_path / "cache"), threading.Event()
    store.prepare()
    config = BuildConfig(tmp_dir=tmp_path, timeout=0.2)
    service = ImageService(Store(tmp_path / "cache"), lambda: builder, config)
    spec = image("pandas")
    with store.lock(spec.digest, cancel=never):
        error = service.request(spec).exception(30)
    assert isinstance(error, ContainerError)
    assert error.code == "lock-timeout"
    service.close()


def test_a_request_served_late_leaves_a_younger_one_to_be_joined(
    service, builder
) -> None:
    """One that no thread could be had for may still be served, for nobody."""
    builder.gate.clear()
    younger = service.request(image("late"))
    late = Request(Order(image("late")), "", state=State.RESOLVING)
    service._finish(late, BuildError("of no interest"), 0.0)
    joined = service.request(image("late"))
    assert service.counts()["waiting_tasks"] == 2
    builder.gate.set()
    assert [f.result(30).cache for f in (younger, joined)] == ["built", "shared"]
    assert len(builder.builds) == 1


# -- failures that are remembered -----------------------------------------------


def wrong(code: str = "package-not-found") -> BuildError:
    return BuildError("no such package", stage="pip", code=code)


def test_a_failure_is_remembered_and_costs_no_second_build(
    tmp_path, service, builder
) -> None:
    builder.error = wrong()
    assert service.request(image("pandsa")).exception(30) is builder.error
    builder.error = None
    for asked in (service, make_service(tmp_path, builder)):
        error = asked.request(image("pandsa")).exception(30)
        assert (error.code, error.stage) == ("package-not-found", "pip")
        assert "this failure is remembered from" in error.hint
    assert len(builder.builds) == 1
    asked.close()


def test_force_tries_again_and_success_forgets(service, builder) -> None:
    builder.error = wrong()
    assert service.request(image("pandsa")).exception(30)
    builder.error = None
    assert service.request(image("pandsa"), fresh=True).result(30).cache == "built"
    assert service.request(image("pandsa")).result(30).cache == "shared"
    assert not list(service._store.top.joinpath("failures").rglob("*.json"))


def test_who_wants_it_younger_has_it_tried_again(tmp_path, builder) -> None:
    hours, began = [0.0], datetime.now(timezone.utc)
    service = make_service(
        tmp_path, builder, now=lambda: began + timedelta(hours=hours[0])
    )
    builder.error = wrong()
    assert service.request(image("pandsa")).exception(30)
    builder.error, hours[0] = None, 0.5
    assert service.request(image("pandsa"), max_age=7200).exception(30)
    assert service.request(image("pandsa"), max_age=60).result(30).cache == "built"
    service.close()


def test_all_processes_that_waited_share_the_failure(tmp_path, builder) -> None:
    one, two = make_service(tmp_path, builder), make_service(tmp_path, builder)
    builder.gate.clear()
    builder.error = wrong()
    first = one.request(image("pandsa"))
    assert builder.begun.wait(30)
    second = two.request(image("pandsa"))
    poll(lambda: two.counts()["queued"] == 1)
    builder.gate.set()
    assert first.exception(30).code == second.exception(30).code == wrong().code
    assert len(builder.builds) == 1
    one.close()
    two.close()


# -- cancelling -----------------------------------------------------------------


def test_the_build_goes_on_while_anybody_waits_and_ends_with_the_last(
    service, builder
) -> None:
    builder.gate.clear()
    futures = [service.request(image("pandas")) for _ in range(3)]
    assert builder.begun.wait(30)
    assert futures[0].cancel()
    assert futures[1].cancel()
    assert not builder.cancel.is_set()
    assert service.counts()["waiting_tasks"] == 1
    assert futures[2].cancel()
    assert builder.cancel.is_set()
    again = service.request(image("pandas"))  # joins no build that is about to end
    builder.gate.set()
    assert again.result(30).cache == "built"


def test_a_cancelled_request_that_waits_for_its_turn_never_builds(
    tmp_path, builder
) -> None:
    config = BuildConfig(tmp_dir=tmp_path, concurrency=1)
    service = ImageService(Store(tmp_path / "cache"), lambda: builder, config)
    builder.gate.clear()
    first = service.request(image("first"))
    assert builder.begun.wait(30)
    second = service.request(image("second"))
    third = service.request(image("third"))
    assert second.cancel()
    builder.gate.set()
    assert {f.result(30).cache for f in (first, third)} == {"built"}
    assert image("second").digest not in builder.builds
    service.close()


def test_an_answer_that_comes_too_late_for_one_reaches_the_others(
    service, builder
) -> None:
    builder.gate.clear()
    futures = [service.request(image("pandas")) for _ in range(3)]
    assert futures[1].cancel()
    builder.gate.set()
    assert {futures[n].result(30).image.path.exists() for n in (0, 2)} == {True}
    assert futures[1].cancelled()


# -- room and limits ------------------------------------------------------------


def test_after_a_build_room_is_made(tmp_path, builder) -> None:
    service = make_service(tmp_path, builder, max_cache_size=1)
    first = service.request(image("a1")).result(30)
    leases = service._store.leases
    poll(lambda: leases._counts == {})
    leases.close()  # some time later
    service.request(image("b1")).result(30)
    poll(lambda: not first.image.path.exists())
    service.close()


def test_an_image_in_use_stays_though_there_is_no_room(tmp_path, builder) -> None:
    service = make_service(tmp_path, builder, max_cache_size=1)
    ready = service.request(image("a1")).result(30)
    lease = service.use(ready)
    service.request(image("b1")).result(30)
    service.close()  # waits for all that runs
    assert lease is not None
    assert ready.image.path.exists()


def test_so_many_builds_at_once_in_all_processes_that_share_a_cache(
    tmp_path, builder
) -> None:
    config = BuildConfig(tmp_dir=tmp_path, cache_concurrency=1)
    services = [
        ImageService(Store(tmp_path / "cache"), lambda: builder, config)
        for _ in range(2)
    ]
    builder.gate.clear()
    one = services[0].request(image("a1"))
    assert builder.begun.wait(30)
    two = services[1].request(image("b1"))
    poll(lambda: services[1].counts()["queued"] == 1)
    assert len(builder.builds) == 1
    builder.gate.set()
    assert {f.result(30).cache for f in (one, two)} == {"built"}
    for service in services:
        service.close()


def test_who_lost_the_lock_meanwhile_publishes_nothing_and_takes_what_is_there(
    tmp_path, builder
) -> None:
    """As a machine that was cut off from the cache for minutes."""
    spec = image("pandas")

    class Replaced(type(builder)):
        def build(self, order, place, **kwargs):
            built = super().build(order, place, **kwargs)
            if len(self.builds) == 1:
                folder = tmp_path / "cache/v2/locks" / spec.digest[7:]
                (folder / "00000002.free").touch()
            return built

    replaced = Replaced()
    service = make_service(tmp_path, replaced)
    assert service.request(spec).result(30).cache == "built"
    assert len(replaced.builds) == 2
    images = tmp_path / "cache/v2/images/sha256"
    assert len(list(images.glob("*/*"))) == 1
    service.close()


# -- freshness and bytecode ------------------------------------------------------


def test_an_image_is_sticky_until_it_is_too_old(tmp_path, builder) -> None:
    hours = [0]
    made = datetime.now(timezone.utc)
    service = make_service(
        tmp_path, builder, now=lambda: made + timedelta(hours=hours[0])
    )
    spec = image("pandas")
    first = service.request(spec).result(30)
    hours[0] = 2
    assert service.cached(spec.digest) is not None
    assert service.cached(spec.digest, max_age=3 * 3600) is not None
    assert service.cached(spec.digest, max_age=3600) is None
    second = service.request(spec, max_age=3600).result(30)
    assert second.cache == "built"
    assert second.image.path != first.image.path
    assert [order.fresh for order in builder.orders] == [False, True]
    service.close()


def test_what_is_young_enough_is_not_built_again(service, builder) -> None:
    spec = image("pandas")
    service.request(spec).result(30)
    assert service.request(spec, max_age=3600).result(30).cache == "shared"
    assert len(builder.builds) == 1


def test_asking_for_a_fresh_image_builds_it_though_one_is_there(
    service, builder
) -> None:
    spec = image("pandas")
    first = service.request(spec).result(30)
    second = service.request(spec, fresh=True).result(30)
    assert second.cache == "built"
    assert builder.orders[-1].fresh
    assert service.cached(spec.digest).image == second.image
    assert first.image.path.exists(), "a task may be about to use it"


def test_a_locked_build_resolves_nothing_anew(service, builder) -> None:
    spec, lock = image("pandas"), object()
    service.request(spec).result(30)
    service.request(spec, locked=lock).result(30)
    assert [order.fresh for order in builder.orders] == [False, False]
    assert builder.orders[-1].locked is lock


def test_a_locked_build_takes_no_image_that_others_make(service, builder) -> None:
    spec, lock = image("pandas"), object()
    builder.gate.clear()
    futures = [service.request(spec)]
    poll(lambda: builder.builds)
    futures += [service.request(spec, locked=lock)]
    builder.gate.set()
    assert [f.result(30).cache for f in futures] == ["built", "built"]
    assert [order.locked for order in builder.orders] == [None, lock]


def test_whoever_joins_a_fresh_build_gets_its_image(service, builder) -> None:
    spec = image("pandas")
    service.request(spec).result(30)
    builder.gate.clear()
    futures = [service.request(spec, fresh=True) for _ in range(3)]
    builder.gate.set()
    assert len({f.result(30).image.path for f in futures}) == 1
    assert len(builder.builds) == 2


def test_the_policy_of_the_request_reaches_the_build(service, builder) -> None:
    rules = Policy(allow_post=True)
    service.request(image("pandas"), policy=rules).result(30)
    assert builder.orders[-1].policy is rules


# -- the state machine ----------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_every_move_is_either_in_the_table_or_refused(old: State, new: State) -> None:
    request = Request(Order(image("pandas")), "", state=old)
    if new in TRANSITIONS[old]:
        request.advance(new)
        assert request.state is new
    else:
        with pytest.raises(RuntimeError):
            request.advance(new)


def test_the_table_covers_every_state_and_ends() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.READY] == TRANSITIONS[State.FAILED] == frozenset()
    for state in State:
        if TRANSITIONS[state]:
            assert State.FAILED in TRANSITIONS[state]


# -- between processes ----------------------------------------------------------


def _ask(tmp_path: Path, barrier: Any, built: Any, make_builder: Any) -> None:
    builder = make_builder()
    service = make_service(tmp_path, builder)
    specs = [image(name) for name in ("a1", "b1", "c1")]
    barrier.wait(30)
    for spec in specs:
        try:
            service.request(spec).result(60)
        except ContainerError as error:
            built.put(repr(error))
    service.close()
    built.put(builder.builds)


def test_processes_that_share_a_cache_build_each_image_once(tmp_path, builder) -> None:
    context = multiprocessing.get_context("fork")
    barrier, built = context.Barrier(4), context.Queue()
    asks = (tmp_path, barrier, built, type(builder))
    processes = [context.Process(target=_ask, args=asks) for _ in range(4)]
    for process in processes:
        process.start()
    builds = list(itertools.chain(*(built.get(timeout=60) for _ in processes)))
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(builds) == sorted(image(n).digest for n in ("a1", "b1", "c1"))


def poll(condition: Any) -> None:
    """Wait, up to a minute, for something another thread is about to do."""
    nap = threading.Event()
    for _ in range(6000):
        if condition():
            return
        nap.wait(0.01)
    raise AssertionError("it did not happen")
