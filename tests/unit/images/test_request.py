"""Requests in their states, and waiting for what becomes of them."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future

import pytest

from globus_compute_apptainer.images import outcome


def test_what_a_future_ends_in_is_returned_or_raised() -> None:
    good, bad = Future(), Future()
    good.set_result(3)
    bad.set_exception(ZeroDivisionError())
    assert outcome(good) == 3
    with pytest.raises(ZeroDivisionError):
        outcome(bad)


def test_one_that_takes_longer_than_a_look_is_waited_for() -> None:
    """Also where a wait that ends without a result is an exception of its own."""
    future: Future[int] = Future()
    timer = threading.Timer(0.6, future.set_result, [3])
    timer.start()
    assert outcome(future) == 3
    timer.join()


def test_a_signal_ends_the_waiting() -> None:
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        outcome(Future())
    timer.join()
