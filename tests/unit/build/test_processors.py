"""How many processors a build may keep busy, by the kernel's own files."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.build.processors import processors

JOB = "/sys/fs/cgroup/system.slice/job_2.scope"
OWN_V1 = {"/proc/self/cgroup": "5:cpu,cpuacct:/slurm/job_2\n4:memory:/a\n"}
OWN_V2 = {"/proc/self/cgroup": "0::/system.slice/job_2.scope/step_0\n"}


def v1(place: str, quota: int, period: int = 100_000) -> dict[str, str]:
    folder = f"/sys/fs/cgroup/cpu{place}"
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        (OWN_V2, 16),
        ({**OWN_V2, f"{JOB}/step_0/cpu.max": "max 100000\n"}, 16),
        ({**OWN_V2, f"{JOB}/step_0/cpu.max": "400000 100000\n"}, 4),
        (  # a group above is tighter
            {
                **OWN_V2,
                f"{JOB}/step_0/cpu.max": "400000 100000\n",
                f"{JOB}/cpu.max": "150000 100000\n",
            },
            2,
        ),
        ({**OWN_V2, "/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({**OWN_V2, f"{JOB}/cpu.max": "6400000 100000\n"}, 16),
        ({**OWN_V2, f"{JOB}/cpu.max": "nonsense\n"}, 16),
        ({**OWN_V1, **v1("/slurm/job_2", -1)}, 16),
        ({**OWN_V1, **v1("/slurm/job_2", 300_000), **v1("", 200_000)}, 2),
        ({**OWN_V1, **v1("/slurm/job_2", 300_000, 0)}, 16),
    ],
)
def test_the_tightest_limit_counts(files: dict[str, str], expected: int):
    assert processors(lambda path: files.get(path, ""), lambda: 16) == expected


def test_the_processors_that_it_may_run_on_count_too():
    files = {**OWN_V2, f"{JOB}/cpu.max": "400000 100000\n"}
    assert processors(lambda path: files.get(path, ""), lambda: 2) == 2


def test_they_are_known_here():
    assert processors() >= 1
