import re

import pytest

from globus_compute_apptainer.worker import environment
from globus_compute_apptainer.worker.environment import (
    WorkerEnvironment,
    task_environment,
    without_proxy_credentials,
)


def passed(worker, spec=()):
    return WorkerEnvironment(spec)(worker)


def documented() -> list[str]:
    table = environment.__doc__.split("=\n")[1]
    return re.findall(r"``([A-Z_*]+)``", table)


def test_documented_table_is_what_is_passed():
    names = {name.replace("*", "ANYTHING"): "value" for name in documented()}
    assert len(names) > 30
    assert passed(names) == names


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME", "LANG"),
        *("GLOBUS_COMPUTE_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_ID", "GC", "XGC_Y"),
        *("GC_TOKEN", "SLURM_JWT", "PARSL_SECRET", "PBS_JOBCOOKIE", "GC_API_KEY"),
        *("FLUX_PASSWORD", "GC_CREDENTIALS", "TOKEN", "MY_TOKEN", "JOB_ID_X"),
        *("GC_TASK_SANDBOX_DIR", "CUDA_HOME", "MKL_ROOT"),
    ],
)
def test_nothing_else_is_passed(name):
    assert passed({name: "value"}) == {}


def test_spec_wins_except_over_facts_about_the_task():
    worker = {"OMP_NUM_THREADS": "1", "GC_TASK_TIMEOUT": "5", "PARSL_X": "2"}
    found = passed(worker, spec=["OMP_NUM_THREADS", "GC_TASK_TIMEOUT", "OTHER"])
    assert found == {"GC_TASK_TIMEOUT": "5", "PARSL_X": "2"}


def test_task_is_named():
    assert task_environment("id", None) == {"GC_TASK_UUID": "id"}
    found = task_environment("id", "/folder/id")
    assert found == {"GC_TASK_UUID": "id", "GC_TASK_SANDBOX_DIR": "/folder/id"}
    assert passed({**found, "GC_X": "1"}) == {"GC_X": "1"}  # a former task's


@pytest.mark.parametrize(
    "name", ["http_proxy", "HTTPS_PROXY", "ftp_proxy", "All_Proxy"]
)
def test_proxies_pass_without_credentials(name):
    plain = {name: "http://proxy:3128", "no_proxy": "a,b", "MAIL": "me@example.org"}
    assert without_proxy_credentials(plain) == plain
    given = {"APPTAINERENV_" + name: "http://me:pw@proxy"}  # the spec's own
    assert without_proxy_credentials(given) == given
    for secret in ("http://me:pw@proxy:3128", "me@proxy"):
        assert without_proxy_credentials({name: secret, "A": "1"}) == {"A": "1"}


def test_values_are_left_alone():
    value = "a\n=b \udc80"
    assert passed({"GC_X": value}) == {"GC_X": value}
