"""Which of the worker's environment variables a task in a container sees.

Runs in worker processes; pure. The container starts with a clean environment: what
the image sets, what Apptainer sets (``HOME``, ``APPTAINER_*``, ``SINGULARITY_*``) or
passes on from the worker (``TERM``, and ``http_proxy``, ``https_proxy``,
``ftp_proxy``, ``all_proxy`` and ``no_proxy`` in either case, see
:func:`without_proxy_credentials`), and the spec's ``env``. Before every task the
variables of this table are copied from the worker, whose values differ from worker to
worker and may change between tasks:

====================  =========================================================
Globus and Parsl      ``GC_*``, ``PARSL_*``
accelerators          ``CUDA_VISIBLE_DEVICES``, ``CUDA_DEVICE_ORDER``,
                      ``ROCR_VISIBLE_DEVICES``, ``HIP_VISIBLE_DEVICES``,
                      ``GPU_DEVICE_ORDINAL``, ``ZE_AFFINITY_MASK``,
                      ``ZE_ENABLE_PCI_ID_DEVICE_ORDER``,
                      ``ZE_FLAT_DEVICE_HIERARCHY``
threads               ``OMP_*``, ``GOMP_*``, ``KMP_*``, ``MKL_NUM_THREADS``,
                      ``MKL_DYNAMIC``, ``OPENBLAS_NUM_THREADS``,
                      ``BLIS_NUM_THREADS``, ``NUMEXPR_NUM_THREADS``,
                      ``NUMEXPR_MAX_THREADS``
batch system          ``SLURM_*``, ``SLURMD_NODENAME``, ``PBS_*``, ``LSB_*``,
                      ``SGE_*``, ``FLUX_*``, ``COBALT_*``, ``JOB_ID``,
                      ``NSLOTS``, ``NHOSTS``, ``PE_HOSTFILE``
scratch               ``TMPDIR``, if that folder exists inside
====================  =========================================================

Two more are set for each task as the stock engine sets them: ``GC_TASK_UUID``, and
``GC_TASK_SANDBOX_DIR`` in a sandbox. A variable in the spec's ``env`` wins over the
worker's, except over ``GC_TASK_*``: those are facts about the task.

Never copied, not even from the families above: whatever is named like a credential
(``*TOKEN*``, ``*SECRET*``, ``*PASSWORD*``, ``*CREDENTIAL*``, ``*COOKIE*``, ``*JWT*``,
``*_KEY``). Nor is anything else that is not in the table, such as ``PATH``,
``PYTHONPATH``, ``LD_LIBRARY_PATH`` or ``VIRTUAL_ENV``, which speak of the host.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FAMILIES: Final = "GC PARSL OMP GOMP KMP SLURM PBS LSB SGE FLUX COBALT".split()
_NAMES: Final = """
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES
    GPU_DEVICE_ORDINAL ZE_AFFINITY_MASK ZE_ENABLE_PCI_ID_DEVICE_ORDER
    ZE_FLAT_DEVICE_HIERARCHY
    MKL_NUM_THREADS MKL_DYNAMIC OPENBLAS_NUM_THREADS BLIS_NUM_THREADS
    NUMEXPR_NUM_THREADS NUMEXPR_MAX_THREADS
    SLURMD_NODENAME JOB_ID NSLOTS NHOSTS PE_HOSTFILE
    TMPDIR
""".split()
_PASSED: Final = re.compile(
    rf"(?!.*(?:TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|JWT|_KEY\Z))"
    rf"(?:(?:{'|'.join(_FAMILIES)})_.*|{'|'.join(_NAMES)})\Z",
    re.DOTALL,
)
_ABOUT_THE_TASK: Final = "GC_TASK_"
_OF_EACH: Final = ("GC_TASK_UUID", "GC_TASK_SANDBOX_DIR")
_PROXY: Final = re.compile(r"(https?|ftp|all|no)_proxy\Z", re.IGNORECASE)


def without_proxy_credentials(launcher: Mapping[str, str]) -> dict[str, str]:
    """The environment that starts Apptainer, less the proxies' URLs with ``user@``.

    Apptainer passes all proxy variables into the container, whatever it is told. What
    the spec sets is not touched: those names have Apptainer's prefix here.
    """
    return {
        name: value
        for name, value in launcher.items()
        if not (_PROXY.match(name) and "@" in value)
    }


class WorkerEnvironment:
    """The worker's variables that go inside, on top of the container's own.

    Looked for anew only when some have changed: to look at ``os.environ`` costs more
    than a small task does, since every name and value is decoded; what it is made of,
    where that is known, can be compared quickly.

    :param spec: names that the spec's ``env`` sets
    """

    def __init__(self, spec: Collection[str] = ()) -> None:
        self._spec = spec
        self._before: tuple[dict[Any, Any] | None, dict[str, str]] = None, {}

    def __call__(self, worker: Mapping[str, str]) -> dict[str, str]:
        """Those of an environment: the same object as before if they are the same."""
        raw = getattr(worker, "_data", None)
        known, found = self._before
        if raw is None or raw != known:
            found = {n: v for n, v in worker.items() if self._passes(n)}
            self._before = None if raw is None else dict(raw), found
        return found

    def _passes(self, name: str) -> bool:
        return (
            _PASSED.match(name) is not None
            and name not in _OF_EACH
            and (name not in self._spec or name.startswith(_ABOUT_THE_TASK))
        )


def task_environment(task_id: str, sandbox: str | None) -> dict[str, str]:
    """The variables that tell about one task, on top of those.

    :param sandbox: the task's own folder, if tasks run in one
    """
    about = {"GC_TASK_UUID": task_id}
    return about if sandbox is None else {**about, "GC_TASK_SANDBOX_DIR": sandbox}
