"""So many at once, in the order of their coming."""

from __future__ import annotations

import threading

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.images.slots import Slots


class Waiter(threading.Thread):
    """Takes a place, and keeps it until told."""

    def __init__(self, slots: Slots, number: int, order: list[int]) -> None:
        super().__init__(daemon=True)
        self.slots, self.number, self.order = slots, number, order
        self.has, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.slots.one(self.number, threading.Event()):
            self.order.append(self.number)
            self.has.set()
            self.leave.wait(60)


def wait_until_waiting(slots: Slots, count: int) -> None:
    nap = threading.Event()
    for _ in range(6000):
        if len(slots._waiting) == count:
            return
        nap.wait(0.01)
    raise AssertionError("they do not wait")


def test_the_first_to_come_is_the_first_whoever_waited_longest_for_other_things():
    slots, order = Slots(1), []
    first = Waiter(slots, 1, order)
    assert first.has.wait(60)
    others = []
    for number in (5, 3, 4, 2):  # as they got their locks
        others.append(Waiter(slots, number, order))
        wait_until_waiting(slots, len(others))
    for waiter in others:
        waiter.leave.set()
    first.leave.set()
    for waiter in others:
        waiter.join(60)
    assert order == [1, 2, 3, 4, 5]


def test_never_more_than_there_are_places() -> None:
    slots, order = Slots(2), []
    one, two = Waiter(slots, 1, order), Waiter(slots, 2, order)
    assert one.has.wait(60)
    assert two.has.wait(60)
    three = Waiter(slots, 3, order)
    wait_until_waiting(slots, 1)
    assert order.count(3) == 0
    two.leave.set()
    assert three.has.wait(60)
    for waiter in (one, three):
        waiter.leave.set()
        waiter.join(60)


def test_who_is_cancelled_lets_the_next_one_pass() -> None:
    slots, order, cancel = Slots(1), [], threading.Event()
    first = Waiter(slots, 1, order)
    assert first.has.wait(60)
    cancel.set()
    with pytest.raises(StoreError) as caught, slots.one(2, cancel):
        pass
    assert caught.value.code == "build-cancelled"
    third = Waiter(slots, 3, order)
    first.leave.set()
    assert third.has.wait(60)
    third.leave.set()
    third.join(60)
    assert slots._waiting == []


def test_a_place_comes_back_when_work_fails() -> None:
    slots = Slots(1)
    for number in range(3):
        with pytest.raises(ZeroDivisionError), slots.one(number, threading.Event()):
            raise ZeroDivisionError
