"""The real machine answers plainly, also where the answer is no."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from globus_compute_apptainer.cli.host import Host


@pytest.fixture
def here() -> Host:
    return Host()


def test_a_program_that_cannot_be_started(here: Host) -> None:
    assert here.run(["/nowhere/program"]).status == 127


def test_a_program_and_its_output(here: Host) -> None:
    ran = here.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert ran.status == 3
    assert sorted(ran.output.split()) == ["err", "out"]


def test_locks_on_this_machine_exclude(here: Host, tmp_path: Path) -> None:
    assert here.lock_error(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(here: Host, tmp_path: Path) -> None:
    assert here.existing(tmp_path / "a" / "b") == tmp_path
    assert here.write_error(tmp_path / "a")
    assert here.lock_error(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(here: Host, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert here.write_error(tmp_path) == "Permission denied"


def test_files(here: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(" x \n")
    assert here.text(tmp_path / "file") == "x"
    assert here.text(tmp_path / "other") is None
    assert here.open_error(tmp_path / "other") == "No such file or directory"
    assert here.open_error(tmp_path / "file") == ""
    assert not here.set_user_id(tmp_path / "file")
    assert not here.set_user_id(tmp_path / "other")


def test_programs_are_looked_for_in_folders_first(here: Host, tmp_path: Path) -> None:
    program = tmp_path / "sh"
    program.write_text("")
    program.chmod(0o755)
    assert here.program("sh", tmp_path) == program
    assert here.program("sh") != program
    assert here.program("no-such-program") is None


class _Server(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        given = self.headers.get("Authorization", "")
        self.send_response(200 if given == "Basic YWRhOnAvdw==" else 401)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_s_status_and_credentials_in_the_url(here: Host, address: str) -> None:
    assert here.fetch(f"http://{address}/").status == 401
    assert here.fetch(f"http://ada:p%2Fw@{address}/").status == 200


def test_a_server_that_is_not_there(here: Host) -> None:
    reply = here.fetch("http://127.0.0.1:1/")
    assert (reply.status, "refused" in reply.reason) == (0, True)
    assert here.fetch("http://no such host/").status == 0
