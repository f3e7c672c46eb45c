"""How much memory a build may count on, by the kernel's own files."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.build.memory import available_memory

MB = 1024**2
MACHINE = {"/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {9000 * 1024} kB\n"}
JOB_V1 = "/sys/fs/cgroup/memory/slurm/job_2"
JOB_V2 = "/sys/fs/cgroup/system.slice/job_2.scope"


def v1(place: str, limit: object, used: int) -> dict[str, str]:
    return {
        f"{place}/memory.limit_in_bytes": f"{limit}\n",
        f"{place}/memory.usage_in_bytes": f"{used}\n",
    }


def v2(place: str, limit: object, used: int) -> dict[str, str]:
    return {f"{place}/memory.max": f"{limit}\n", f"{place}/memory.current": f"{used}\n"}


OWN_V1 = {
    "/proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/slurm/job_2/step_0\n0::/b\n"
}
OWN_V2 = {"/proc/self/cgroup": "0::/system.slice/job_2.scope/step_0\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 9000 * MB),
        (OWN_V2, 9000 * MB),
        ({**OWN_V2, **v2(f"{JOB_V2}/step_0", 700 * MB, 200 * MB)}, 500 * MB),
        (  # an ancestor is tighter
            {
                **OWN_V2,
                **v2(f"{JOB_V2}/step_0", "max", 200 * MB),
                **v2(JOB_V2, 400 * MB, 300 * MB),
            },
            100 * MB,
        ),
        ({**OWN_V2, **v2("/sys/fs/cgroup", 80 * MB, 0)}, 80 * MB),  # in a container
        ({**OWN_V2, **v2(f"{JOB_V2}/step_0", 100 * MB, 200 * MB)}, 0),
        (
            {
                **OWN_V1,
                **v1(f"{JOB_V1}/step_0", 700 * MB, 200 * MB),
                **v1(JOB_V1, 600 * MB, 200 * MB),
                **v1("/sys/fs/cgroup/memory", 2**63 - 4096, 0),
            },
            400 * MB,
        ),
        ({**OWN_V1, **v2("/sys/fs/cgroup/a", 1, 0)}, 9000 * MB),  # not of memory
    ],
)
def test_the_tightest_limit_counts(files: dict[str, str], expected: int):
    known = {**MACHINE, **files}
    assert available_memory(lambda path: known.get(path, "")) == expected


def test_it_is_known_here():
    assert available_memory() > 10 * MB
