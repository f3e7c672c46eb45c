"""Definition files for plain Apptainer."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from globus_compute_apptainer.build.record import lock
from globus_compute_apptainer.build.record.definition import definition

SHA = "0123456789abcdef" * 4
BASE = {"reference": "docker://python:3.11-slim", "digest": f"sha256:{SHA}"}


def written(**parts: Any) -> str:
    spec = {"agent": "docker", "base_image": "python:3.11-slim"}
    document = {"format": 1, "base": BASE, "spec": {**spec, **parts.pop("spec", {})}}
    return definition(lock.parse(json.dumps(document | parts)), "sha256:1234")


def post(text: str) -> str:
    section = text.partition("%post\n")[2].partition("\n%environment")[0]
    checked = subprocess.run(["sh", "-n"], input=section, text=True, check=False)
    assert checked.returncode == 0, section
    return section


def test_a_base_alone() -> None:
    assert written() == (
        "# Equivalent of the image sha256:1234,\n"
        "# for plain Apptainer: apptainer build image.sif image.def\n"
        "Bootstrap: docker\n"
        f"From: python@sha256:{SHA}\n"
    )


def test_packages_are_pinned() -> None:
    hashed = {"name": "six", "version": "1.17.0", "hashes": [f"sha256:{SHA}"]}
    text = written(
        apt={"packages": [{"name": "git", "version": "1:2.39.5"}]},
        pip={"packages": [hashed]},
    )
    section = post(text)
    assert "    git=1:2.39.5\n" in section
    assert f"six==1.17.0 --hash=sha256:{SHA}\n" in section
    assert "--require-hashes" in section
    assert "export PATH=/.gc-apptainer/env/bin:$PATH" in text
    assert "Not exact: Debian's archive" in text
    assert "have no hash" not in text


def test_what_is_not_exact_is_said() -> None:
    conda = {
        "name": "zlib",
        "version": "1.3",
        "build": "h0_0",
        "url": "https://h/zlib.conda",
        "md5": SHA[:32],
    }
    text = written(
        spec={"agent": "localimage", "base_image": "/a/b.sif"},
        pip={"packages": [{"name": "six", "version": "1.17.0", "hashes": []}]},
        conda={"packages": [conda]},
    )
    section = post(text)
    assert f"https://h/zlib.conda#{SHA[:32]}\n" in section
    assert "--require-hashes" not in section
    for words in ("the base must be", "micromamba", "have no hash"):
        assert f"# Not exact: {words}" in text or words in text.partition("Boot")[0]
    assert "PATH=/.gc-apptainer/env/bin:/.gc-apptainer/conda/bin:$PATH" in text


def test_a_payload_from_git_and_from_an_archive() -> None:
    url = "git+https://h/r.git#main"
    text = written(payload={"url": url, "commit": SHA[:40]})
    assert "git clone https://h/r.git /payload\n" in post(text)
    assert f"checkout --detach {SHA[:40]}" in text
    text = written(payload={"url": "https://h/a.tar.gz?x=1;rm", "sha256": SHA})
    section = post(text)
    assert "curl -fsSL 'https://h/a.tar.gz?x=1;rm'" in section
    assert f"echo '{SHA}  /tmp/gc-payload' | sha256sum -c -" in section
    assert "tar -C /payload -xf" in section
    zipped = written(payload={"url": "https://h/a.zip", "sha256": SHA})
    assert "unzip -q /tmp/gc-payload -d /payload" in post(zipped)


def test_lines_of_the_user_stay_what_they_are() -> None:
    lines = ["cat > /x <<EOF\na\nEOF", "%post\necho {{ x }}"]
    text = written(spec={"post": lines, "build_env": [["A", "b 'c'"]]})
    section = post(text)
    assert "<<EOF\na\nEOF\n" in section
    assert "\n %post\n" in section
    assert text.count("\n%post\n") == 1
    assert """export A='b '"'"'c'"'"''\n""" in section
    assert "{{ … }}" in text
