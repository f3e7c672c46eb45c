"""Golden specs: digests that never change, and refusals with their codes.

The files are in ``tests/golden/spec``; its README says how to add one.
"""

import json
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.model import parse

FOLDER = Path(__file__).parents[2] / "golden" / "spec"
FILES = sorted(FOLDER.glob("*.json"))


def golden(prefix):
    paths = [path for path in FILES if path.name.startswith(prefix)]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_every_file_is_read():
    assert FILES
    assert all(path.name.startswith(("good-", "bad-")) for path in FILES)


@golden("good-")
def test_the_digest_is_what_it_always_was(path):
    case = json.loads(path.read_text("utf-8"))
    image = parse(case["spec"]).image_spec(**case["context"])
    assert image.canonical().decode() == case["canonical"]
    assert image.digest == case["digest"]


@golden("bad-")
def test_the_refusal_is_what_it_always_was(path):
    case = json.loads(path.read_text("utf-8"))
    with pytest.raises(SpecError) as caught:
        parse(case["spec"])
    assert caught.value.code == case["code"]
    assert caught.value.field == case["field"]
