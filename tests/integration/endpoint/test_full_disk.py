"""No room in the image cache when the endpoint starts: a real full file system."""

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


def test_no_room_at_the_start_is_a_typed_error_and_other_tasks_run(
    tmp_path: Path,
) -> None:
    script, cache, run_dir = (tmp_path / n for n in ("engine.py", "cache", "run"))
    script.write_text(SCRIPT)
    cache.mkdir()
    run_dir.mkdir()
    mount = 'mount -t tmpfs -o size=1M tmpfs "$1" && shift && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", mount, "sh", cache),
            *(sys.executable, script, cache, run_dir),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == "disk-full"
    assert str(cache) in found["text"]
    assert found["plain"] == 3
