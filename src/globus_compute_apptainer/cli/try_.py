"""``gc-apptainer try SPEC -- python FILE.py:FUNCTION ARG…``: one function, for real.

Runs in a person's shell. The spec is checked first, so that a mistake costs nothing;
then the task goes through :mod:`..endpoint.local`, and so through the image cache.
What the function raised, like what it returned, is the result: with ``--json`` both
are in the document on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pprint import pformat
from typing import Any

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.cli import functions, inputs, output
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.endpoint.local import Outcome, local_engine


def run(options: argparse.Namespace) -> int:
    """The verb: 0 if the function returned, 1 if it, or its container, failed."""
    settings = inputs.settings(options.config, options.cache_dir)
    attached = inputs.spec(options.spec, settings.config)
    inputs.wanted(attached, settings.config)
    function, arguments = functions.from_command(options.command)
    Apptainer.find(settings.config.apptainer)
    with Progress(verbose=options.verbose, quiet=options.json) as progress:
        progress.waiting("the engine starts")
        with local_engine(settings.raw, progress) as engine:
            progress.waiting("the worker starts, the image is looked up")
            outcome = engine.run(function, arguments, attached)
    _show(outcome, as_json=options.json)
    return 1 if outcome.code else 0


def _show(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        output.data(_fields(outcome))
        return
    if outcome.code:
        print(outcome.error.rstrip(), file=sys.stderr)
    else:
        value = outcome.value
        print(value if isinstance(value, str) else pformat(value))
    cache = outcome.container.get("cache", "none")
    print(f"image: {cache}; {outcome.seconds:.1f} s in all", file=sys.stderr)


def _fields(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON has it; what JSON has not is shown by its ``repr``."""
    fields = {
        "container": dict(outcome.container),
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.code:
        return {**fields, "error": {"code": outcome.code, "message": outcome.error}}
    try:
        json.dumps(outcome.value)
    except (TypeError, ValueError, RecursionError):
        return {**fields, "result": repr(outcome.value)}
    return {**fields, "result": outcome.value}
