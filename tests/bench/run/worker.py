"""A worker process without HTEX around it: it tells how long its tasks take.

    python worker.py TERMS-AS-JSON

For every line of standard input, which names a function of ``tasks.py``, it runs that
in the container of the terms and prints the seconds that ``runner.run`` took. A line is
printed first, once all is imported.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.run import tasks  # noqa: E402
from globus_compute_apptainer.worker import runner  # noqa: E402

ARGUMENTS = {"nothing": (), "use_pandas": (0,)}


def main() -> None:
    (terms,) = sys.argv[1:]
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        task_id, message = tasks.packed(getattr(tasks, name), *ARGUMENTS[name])
        began = time.perf_counter()
        answer = runner.run(message, str(task_id), terms)
        seconds = time.perf_counter() - began
        tasks.value(answer)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
