"""A spec never seen, from ``submit`` at the SDK to the result there.

Two real endpoints behind the loopback stand-in of the cloud, with one RabbitMQ: ours,
which stays up, and the stock one, where every environment is a new user endpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.run.measures import Case, Limit, Ratio, Sample
from bench.run.stage import PATIENCE_SECONDS, Stage
from loopback.testbed import Bed, testbed
from provision import services

WORKSTATION = Path(__file__).parents[3] / "endpoint_templates" / "workstation"
OURS, UPSTREAM = "a spec never seen", "a user_endpoint_config never seen"


def where():
    import sys

    return sys.prefix


def _timed(bed: Bed, **settings: Any) -> Sample:
    began = time.perf_counter()
    with bed.executor(**settings) as executor:
        executor.submit(where).result(PATIENCE_SECONDS)
        return {"s": time.perf_counter() - began}


@contextlib.contextmanager
def case(stage: Stage) -> Iterator[Case]:
    """The case, with its endpoints up as long as the block lasts."""
    programs = Path(sys.executable).parent
    with contextlib.ExitStack() as stack:
        folder = stage._run_dir()
        broker = stack.enter_context(services.rabbitmq(folder / "broker"))
        stock = stack.enter_context(
            testbed(folder / "stock", rabbitmq=broker, venv_bin=programs)
        )
        ours = stack.enter_context(
            testbed(
                folder / "ours",
                rabbitmq=broker,
                venv_bin=programs,
                template_dir=WORKSTATION,
                template_edits={
                    "cache_dir: ~/.cache/globus-compute-apptainer": (
                        f"cache_dir: {stage.folder / 'cache'}"
                    ),
                    "    build:": (
                        f"    build:\n      http_registries: ['{stage.registry}']"
                    ),
                },
            )
        )
        spec = {**stage.base, "pip": ["pandas"]}
        warm = {**spec, "pip": ["pandas", "six"]}
        _timed(ours, resource_specification={"container": warm})
        _timed(stock)
        yield _case(ours, stock, spec)


def _case(ours: Bed, stock: Bed, spec: dict[str, Any]) -> Case:
    numbers = itertools.count(2)

    def new_spec() -> Sample:
        unseen = {**spec, "build_env": {"BENCH": str(time.time())}}
        return _timed(ours, resource_specification={"container": unseen})

    def new_user_endpoint() -> Sample:
        return _timed(stock, user_endpoint_config={"workers": next(numbers)})

    ways: dict[str, Callable[[], Sample]] = {
        OURS: new_spec,
        UPSTREAM: new_user_endpoint,
    }
    return Case(
        "endpoint",
        "submit to result through RabbitMQ and a real endpoint that is up;"
        " base and wheels (pandas) cached",
        ways,
        [Ratio("ours / upstream", (OURS, "s"), (UPSTREAM, "s"), 0.5)],
        [Limit("seconds", (OURS, "s"), 5, 3)],
    )
