"""One file over HTTP, from a server that may be anything."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.payload.download import download
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.errors import BuildError

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download.__module__ + ".PAUSE_SECONDS", 0.0)


def code_of(job, url, target, **options):
    with pytest.raises(BuildError) as caught:
        download(job, url, target, limit=LIMIT, **options)
    assert caught.value.stage == "payload"
    return caught.value.code


@pytest.fixture
def job(make_job):
    job = make_job()
    job.enter("payload")
    return job


def test_a_file_is_written_and_measured(job, web, tmp_path, told):
    url = web.serve("/x", b"content")
    found = download(job, url, tmp_path / "x", limit=LIMIT)
    assert (tmp_path / "x").read_bytes() == b"content"
    assert found.sha256 == hashlib.sha256(b"content").hexdigest()
    steps = [event for event in told if isinstance(event, events.Progress)]
    assert steps[-1].done == steps[-1].total == found.size == 7


def test_redirects_are_followed(job, web, tmp_path):
    web.serve("/there", b"content")
    url = web.status("/here", 302, Location="/there")
    assert download(job, url, tmp_path / "x", limit=LIMIT).size == 7


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", ""])
def test_a_redirect_elsewhere_is_not(job, web, tmp_path, target):
    url = web.status("/here", 302, Location=target)
    assert code_of(job, url, tmp_path / "x") == "payload-unreachable"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_or_not_for_us_is_not_found(job, web, tmp_path, status):
    assert code_of(job, web.status("/x", status), tmp_path / "x") == "payload-not-found"
    assert web.asked == ["/x"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(job, web, tmp_path, status):
    url = web.status("/x", status)
    assert code_of(job, url, tmp_path / "x") == "payload-unreachable"
    assert len(web.asked) == 3


def test_a_broken_answer_is_fetched_again(job, web, tmp_path):
    def broken(request):
        request.send_response(200)
        request.send_header("Content-Length", "7")
        request.end_headers()
        request.wfile.write(b"con")
        request.close_connection = True
        web.serve("/x", b"content")

    web.answers["/x"] = broken
    assert download(job, f"{web.url}/x", tmp_path / "x", limit=LIMIT).size == 7


def test_a_file_that_says_it_is_too_large_is_not_fetched(job, web, tmp_path):
    url = web.status("/x", 200, Content_Length=str(10 * 1024**3))
    assert code_of(job, url, tmp_path / "x") == "payload-too-large"


def test_a_file_without_end_is_cut(job, web, tmp_path):
    def endless(request):
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        while True:
            request.wfile.write(b"0" * 65536)

    web.answers["/x"] = endless
    assert code_of(job, f"{web.url}/x", tmp_path / "x") == "payload-too-large"
    assert (tmp_path / "x").stat().st_size <= LIMIT


def test_nobody_there(job, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    assert code_of(job, url, tmp_path / "x") == "payload-unreachable"


def test_a_name_that_nobody_knows(job, tmp_path):
    url = "http://no-such-host.invalid/x"
    assert code_of(job, url, tmp_path / "x") == "payload-unreachable"


def test_a_server_that_falls_silent(job, web, tmp_path):
    ended = threading.Event()

    def silent(request):
        request.send_response(200)
        request.send_header("Content-Length", "7")
        request.end_headers()
        ended.wait(30)

    web.answers["/x"] = silent
    code = code_of(job, f"{web.url}/x", tmp_path / "x", timeout=(1.0, 0.2))
    ended.set()
    assert code == "payload-unreachable"


def test_a_build_that_is_cancelled_stops_fetching(make_job, web, tmp_path):
    job = make_job()
    ended = threading.Event()

    def slow(request):
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(b"0")
        job.cancel.set()
        while not ended.wait(0.01):
            request.wfile.write(b"0")

    web.answers["/x"] = slow
    with pytest.raises(BuildError) as caught:
        download(job, f"{web.url}/x", tmp_path / "x", limit=LIMIT)
    ended.set()
    assert caught.value.code == "build-cancelled"


def test_a_build_whose_time_is_up_stops_fetching(make_job, web, tmp_path):
    job = make_job(deadline=time.monotonic() - 1)
    with pytest.raises(BuildError) as caught:
        download(job, web.serve("/x", b"1"), tmp_path / "x", limit=LIMIT)
    assert caught.value.code == "build-timeout"


def test_the_sites_proxy_is_used(make_job, web, tmp_path):
    site = SiteAccess(variables={"http_proxy": web.url})
    job = make_job(site=site)
    url = "http://payloads.example/x"
    web.serve("/x", b"through the proxy")
    web.answers[url] = web.answers["/x"]  # a proxy is asked for the whole URL
    assert download(job, url, tmp_path / "x", limit=LIMIT).size == 17


def test_a_certificate_that_nobody_knows(job, tls_web, tmp_path):
    url = tls_web.serve("/x", b"content")
    with pytest.raises(BuildError) as caught:
        download(job, url, tmp_path / "x", limit=LIMIT)
    assert caught.value.code == "payload-unreachable"
    assert "ca_bundle" in caught.value.hint


def test_the_sites_certificates_are_trusted(make_job, tls_web, certificate, tmp_path):
    job = make_job(site=SiteAccess(ca_bundle=certificate))
    url = tls_web.serve("/x", b"content")
    assert download(job, url, tmp_path / "x", limit=LIMIT).size == 7


def test_a_redirect_to_a_place_without_tls_is_not_followed(
    make_job, web, tls_web, certificate, tmp_path
):
    job = make_job(site=SiteAccess(ca_bundle=certificate))
    job.enter("payload")
    url = tls_web.status("/x", 302, Location=web.serve("/x", b"content"))
    assert code_of(job, url, tmp_path / "x") == "payload-unreachable"
    assert web.asked == []


def test_no_credentials_of_this_host_are_sent(job, web, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen = []

    def answer(request):
        seen.append(request.headers.get("Authorization"))
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.answers["/x"] = answer
    download(job, f"{web.url}/x", tmp_path / "x", limit=LIMIT)
    assert seen == [None]
