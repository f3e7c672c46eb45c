"""How often a build starts Apptainer, whose start alone takes a tenth of a second."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from integration.images.conftest import Endpoint
from provision.wheels import make_wheel

pytestmark = pytest.mark.apptainer

COUNTING = """\
#!/bin/sh
case $1 in
exec) kind=exec; case $* in *py_compile*) kind=bytecode ;; esac ;;
*) kind=$1 ;;
esac
echo "$kind" >>{log}
exec {apptainer} "$@"
"""


class Starts:
    """An Apptainer that writes down what it is called for."""

    def __init__(self, folder: Path) -> None:
        self._log, self.program = folder / "starts", folder / "apptainer"
        real = shlex.quote(Apptainer.find().path)
        text = COUNTING.format(log=shlex.quote(str(self._log)), apptainer=real)
        self.program.write_text(text)
        self.program.chmod(0o755)

    def taken(self) -> dict[str, int]:
        """Command → number of calls since the last time; without questions."""
        seen = Counter(self._log.read_text().split() if self._log.exists() else ())
        self._log.unlink(missing_ok=True)
        return {kind: seen[kind] for kind in sorted(seen) if kind != "--version"}


@pytest.fixture
def starts(endpoint: Endpoint, tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def test_no_image_takes_more_starts_than_it_needs(
    endpoint: Endpoint, starts: Starts, tmp_path: Path
):
    make_wheel(endpoint.links, "beta", "1.0")
    how = {
        "config": {
            "cache_dir": str(tmp_path / "cache"),
            "apptainer": str(starts.program),
        }
    }

    def taken(**spec: object) -> dict[str, int]:
        ready = endpoint.get({"base_image": endpoint.base, **spec}, **how)
        assert ready.cache == "built"
        assert ready.image.manifest.strategy == "layered"
        return starts.taken()

    # The base: its skeleton, its file with five parts, a look into it. Then the
    # layer, and a look into the image. Bytecode of wheels is made without it.
    first = taken(pip=["alpha==1.0"])
    assert first == {"build": 1, "exec": 2, "sif": 6}
    # The layer, a look.
    assert taken(pip=["beta==1.0"]) == {"exec": 1, "sif": 1}
    # The layer is there: the same, without making it.
    again = taken(pip=["beta==1.0"], env={"A": "b"}, build_env={"A": "b"})
    assert again == {"exec": 1, "sif": 1}
    # Nothing to lay over it.
    assert taken(build_env={"A": "c"}) == {"exec": 1}
    # It is filled once, and packed without a second start, as all in it is root's.
    assert taken(post=["touch /x"]) == {"exec": 2, "sif": 1}


def test_an_image_that_is_there_takes_none(
    endpoint: Endpoint, starts: Starts, tmp_path: Path
):
    how = {"config": {"apptainer": str(starts.program)}}
    endpoint.get(endpoint.good, **how)
    starts.taken()
    assert endpoint.get(endpoint.good, **how).cache == "hit"
    assert starts.taken() == {}
