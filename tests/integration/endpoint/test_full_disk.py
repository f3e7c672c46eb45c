"""No room in the image cache, or in the endpoint's directory: real, full disks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Runs in a mount namespace of its own, with a tmpfs of 1 MB as the cache.
SCRIPT = """
import json, sys, uuid
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_endpoint.engines import GCFuture
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceDill
from parsl.providers import LocalProvider
from globus_compute_apptainer.endpoint.engine import ApptainerEngine

def submit(engine, resources):
    serializer = ComputeSerializer()
    parts = [serializer.serialize(part) for part in (abs, (-3,), {})]
    future = GCFuture(uuid.uuid4())
    task = Task(task_id=future.gc_task_id, task_buffer=serializer.pack_buffers(parts))
    engine.submit(future, messagepack.pack(task), resources)
    return future

if __name__ == "__main__":
    cache, run_dir = sys.argv[1:]
    engine = ApptainerEngine(
        address="127.0.0.1", max_workers_per_node=1,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
        job_status_kwargs={"strategy_period": 0.2},
        containers={"cache_dir": cache})
    engine.start(endpoint_id=uuid.uuid4(), run_dir=run_dir)
    try:
        plain = submit(engine, {})
        contained = submit(engine, {"container": {"pip": ["humanize"]}})
        results = [messagepack.unpack(f.result(120)) for f in (contained, plain)]
    finally:
        engine.shutdown()
    print(json.dumps({
        "code": results[0].error_details.code,
        "text": results[0].data,
        "plain": ComputeSerializer().deserialize(results[1].data)}))
"""


# As above, with a tmpfs of 1 MB as the endpoint's directory.
WAITING = """
import json, sys, uuid
from pathlib import Path
from globus_compute_apptainer.endpoint.journal import Entry, Journal
from globus_compute_apptainer.endpoint.outbox import Outbox

folder = Path(sys.argv[1])
ballast = folder / "ballast"
ballast.write_bytes(b"x" * 900_000)
journal, outbox = Journal(folder / "waiting_tasks"), Outbox(folder / "results")
large, small, result = (uuid.uuid4() for _ in range(3))
journal.keep(Entry(large, None, b"x" * 500_000, {}, None))
outbox.put(result, b"x" * 500_000)
full = {"unwritten": outbox.unwritten(), "left": [
    str(p) for p in folder.rglob("*") if p.is_file() and p != ballast]}
ballast.unlink()
journal.keep(Entry(small, None, b"x", {}, None))
outbox.retry()
print(json.dumps({
    **full,
    "waits": [str(e.task_id) == str(small)
              for e in Journal(folder / "waiting_tasks").recover()],
    "results": [p.name == str(result) for p in (folder / "results").iterdir()]}))
"""


def in_a_full_tmpfs(script: Path, folder: Path, *arguments: Path) -> str:
    mount = 'mount -t tmpfs -o size=1M tmpfs "$1" && shift && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", mount, "sh", folder),
            *(sys.executable, script, folder, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_no_room_to_write_tasks_down_leaves_nothing_half_and_ends_when_there_is_room(
    tmp_path: Path,
) -> None:
    script, folder = tmp_path / "waiting.py", tmp_path / "endpoint"
    script.write_text(WAITING)
    folder.mkdir()
    assert json.loads(in_a_full_tmpfs(script, folder)) == {
        "unwritten": 1,
        "left": [],
        "waits": [True],
        "results": [True],
    }


def test_no_room_at_the_start_is_a_typed_error_and_other_tasks_run(
    tmp_path: Path,
) -> None:
    script, cache, run_dir = (tmp_path / n for n in ("engine.py", "cache", "run"))
    script.write_text(SCRIPT)
    cache.mkdir()
    run_dir.mkdir()
    found = json.loads(in_a_full_tmpfs(script, cache, run_dir))
    assert found["code"] == "disk-full"
    assert str(cache) in found["text"]
    assert found["plain"] == 3
