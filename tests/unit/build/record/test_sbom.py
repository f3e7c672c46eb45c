"""Documents of what is in an image, held against the format's own schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("cyclonedx")

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from globus_compute_apptainer.build.record.sbom import Subject, document

SHA = "0123456789abcdef" * 4
SUBJECT = Subject(
    name="ml",
    digest=f"sha256:{SHA}",
    created="2026-11-22T12:00:00+00:00",
    os="Debian GNU/Linux 12 (bookworm)",
    packages=("Six==1.17.0", "setuptools==66.1.1"),
    lock={
        "base": {
            "reference": "docker://h:5000/python:3.11-slim",
            "digest": f"sha256:{SHA}",
        },
        "apt": {"packages": [{"name": "git", "version": "1:2.39.5", "arch": "amd64"}]},
        "conda": {
            "packages": [
                {
                    "name": "zlib",
                    "version": "1.3",
                    "build": "h0_0",
                    "channel": "conda-forge",
                    "subdir": "linux-64",
                    "url": "https://h/zlib.conda",
                    "sha256": SHA,
                }
            ]
        },
        "pip": {
            "packages": [
                {"name": "six", "version": "1.17.0", "hashes": [f"sha256:{SHA}"]},
                {
                    "name": "mine",
                    "version": "1",
                    "hashes": [],
                    "url": "https://h/m.zip",
                },
            ]
        },
        "tools": {"uv": "0.9.1", "apptainer": "1.4.5"},
    },
)


def read(subject: Subject) -> Any:
    return json.loads(document(subject))


def test_it_is_valid() -> None:
    schema = JsonStrictValidator(SchemaVersion.V1_6)
    assert schema.validate_str(document(SUBJECT)) is None
    bare = replace(SUBJECT, name="", packages=(), lock={})
    assert schema.validate_str(document(bare)) is None


def test_the_same_image_gives_the_same_bytes() -> None:
    assert document(SUBJECT) == document(SUBJECT)
    assert "hashes" not in read(SUBJECT)["metadata"]["component"]  # of no file
    other = read(replace(SUBJECT, digest=f"sha256:{'0' * 64}"))
    assert other["serialNumber"] != read(SUBJECT)["serialNumber"]
    assert other["metadata"]["timestamp"] == "2026-11-22T12:00:00+00:00"


def test_every_package_is_there_once() -> None:
    parts = read(SUBJECT)["components"]
    assert sorted(part["purl"] for part in parts) == [
        "pkg:conda/zlib@1.3?build=h0_0&channel=conda-forge&subdir=linux-64",
        "pkg:deb/debian/git@1:2.39.5?arch=amd64",
        f"pkg:oci/python@sha256:{SHA}?repository_url=h:5000/python&tag=3.11-slim",
        "pkg:pypi/mine@1",
        "pkg:pypi/setuptools@66.1.1",
        "pkg:pypi/six@1.17.0",
    ]
    (six,) = [part for part in parts if part["name"] == "six"]
    assert six["hashes"] == [{"alg": "SHA-256", "content": SHA}]
    (mine,) = [part for part in parts if part["name"] == "mine"]
    assert mine["externalReferences"][0]["url"] == "https://h/m.zip"


def test_of_several_files_none_is_said_to_be_the_one() -> None:
    hashes = [f"sha256:{digit * 64}" for digit in "01"]
    package = {"name": "six", "version": "1.17.0", "hashes": hashes}
    subject = replace(SUBJECT, packages=(), lock={"pip": {"packages": [package]}})
    (part,) = read(subject)["components"]
    assert "hashes" not in part
    assert [one["value"] for one in part["properties"]] == hashes
    schema = JsonStrictValidator(SchemaVersion.V1_6)
    assert schema.validate_str(document(subject)) is None


def test_the_image_depends_on_all_of_it() -> None:
    found = read(SUBJECT)
    (image,) = [d for d in found["dependencies"] if d["ref"] == f"image:sha256:{SHA}"]
    assert len(image["dependsOn"]) == len(found["components"])
    assert found["metadata"]["component"]["name"] == "ml"
    names = {tool["name"] for tool in found["metadata"]["tools"]["components"]}
    assert names == {"apptainer", "uv", "globus-compute-apptainer"}


def test_a_base_from_a_file_has_no_purl() -> None:
    base = {"reference": "localimage:///a/b.sif", "digest": f"sha256:{SHA}"}
    (part,) = read(replace(SUBJECT, packages=(), lock={"base": base}))["components"]
    assert "purl" not in part
    assert part["name"] == "localimage:///a/b.sif"
