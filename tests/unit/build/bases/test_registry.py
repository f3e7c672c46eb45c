"""A registry asked over a real connection, in all the ways in which it can answer."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from globus_compute_apptainer.build.bases import wire
from globus_compute_apptainer.build.bases.credentials import HUB, for_registry
from globus_compute_apptainer.build.bases.registry import Name, Registry
from globus_compute_apptainer.build.bases.wire import Wire, wished_pause
from globus_compute_apptainer.build.proxies import Proxies
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.errors import BuildError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
Answer = tuple[int, dict[str, str], bytes]


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Fake:
    """A registry's API; tests say what it answers, and see what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.forms: list[str] = []
        self.rules: list[Callable[[str, str, dict[str, str]], Answer | None]] = []
        self.content: dict[str, bytes] = {}
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {k.lower(): v for k, v in self.headers.items()}
                length = int(headers.get("content-length", 0))
                outer.forms.append(self.rfile.read(length).decode())
                status, given, body = outer.answer(self.command, self.path, headers)
                self.send_response(status)
                for key, value in given.items():
                    self.send_header(key, value)
                if "Content-Length" not in given:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that gave up
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.02])
        self.thread.start()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        self.asked.append((method, path, headers))
        for rule in self.rules:
            answer = rule(method, path, headers)
            if answer is not None:
                return answer
        body = self.content.get(path)
        if body is None:
            return 404, {}, b'{"errors": []}'
        return 200, {"Docker-Content-Digest": sha(body)}, body

    def put(self, name: str, tag: str, manifest: object) -> str:
        body = json.dumps(manifest).encode()
        for reference in (tag, sha(body)):
            self.content[f"/v2/{name}/manifests/{reference}"] = body
        return sha(body)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(wire, "PAUSE_SECONDS", 0.01)
    found = Fake()
    yield found
    found.close()


@pytest.fixture
def other() -> Iterator[Fake]:
    found = Fake()
    yield found
    found.close()


@pytest.fixture
def registry(fake: Fake, make_job, tmp_path: Path) -> Iterator[Registry]:
    job = make_job()
    job.enter("resolve")
    with Wire(job, fake.host, http=True, home=tmp_path, timeout=(5.0, 0.3)) as way:
        yield Registry(way)


def name(fake: Fake, tag: str = "1") -> Name:
    return Name(fake.host, "me/img", tag)


def image(**more: object) -> dict[str, object]:
    layer = {"digest": "sha256:" + "0" * 64, "size": 3}
    return {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer], **more}


def error_of(registry: Registry, wanted: Name) -> BuildError:
    with pytest.raises(BuildError) as caught:
        registry.resolve(wanted, "x86_64")
    assert caught.value.stage == "resolve"
    return caught.value


def test_a_tag_is_the_digest_of_its_manifest(fake, registry):
    digest = fake.put("me/img", "1", image())
    found = registry.resolve(name(fake), "x86_64")
    assert (found.digest, found.index_digest) == (digest, None)
    assert found.layers == ("sha256:" + "0" * 64,)
    assert registry.resolve(name(fake, digest), "x86_64").digest == digest
    assert registry.digest_of(name(fake)) == digest
    assert fake.asked[-1][0] == "HEAD"
    assert MANIFEST in fake.asked[0][2]["accept"]
    assert INDEX in fake.asked[0][2]["accept"]


def test_an_index_is_followed_to_this_machine(fake, registry):
    digests = {a: fake.put("me/img", a, image(annotations=a)) for a in "ABC"}

    def row(digest: str, arch: str, **more: str) -> dict[str, object]:
        return {
            "digest": digest,
            "platform": {"os": "linux", "architecture": arch} | more,
        }

    rows = [
        {
            "digest": digests["A"],
            "platform": {"os": "windows", "architecture": "amd64"},
        },
        row(digests["A"], "amd64", variant="v3"),
        row(digests["B"], "amd64"),
        row(digests["C"], "arm64", variant="v8"),
        {"digest": digests["A"], "platform": None},
    ]
    top = fake.put("me/img", "1", {"mediaType": INDEX, "manifests": rows})
    found = registry.resolve(name(fake), "x86_64")
    assert (found.digest, found.index_digest) == (digests["B"], top)
    assert found.top_digest == top
    assert registry.resolve(name(fake), "aarch64").digest == digests["C"]
    with pytest.raises(BuildError, match="architecture") as caught:
        registry.resolve(name(fake), "riscv64")
    assert caught.value.code == "base-not-found"


def test_what_is_not_there(fake, registry):
    assert error_of(registry, name(fake)).code == "base-not-found"


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "base-not-found", "log in"),
        (403, "base-not-found", "log in"),
        (429, "registry-unreachable", "wait"),
        (500, "registry-unreachable", "proxy"),
        (418, "registry-unreachable", "proxy"),
    ],
)
def test_refusals(fake, registry, status, code, hint):
    fake.rules.append(lambda *_: (status, {}, b""))
    error = error_of(registry, name(fake))
    assert error.code == code
    assert hint in error.hint


def test_a_server_in_trouble_is_asked_again(fake, registry):
    digest = fake.put("me/img", "1", image())
    fake.rules.append(lambda *_: (503, {}, b"") if len(fake.asked) < 3 else None)
    assert registry.resolve(name(fake), "x86_64").digest == digest


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_is_asked_again_then(fake, registry, status):
    put = fake.put("me/img", "1", image())
    rule = (status, {"Retry-After": "0"}, b"")
    fake.rules.append(lambda *_: rule if len(fake.asked) < 2 else None)
    assert registry.resolve(name(fake), "x86_64").digest == put
    assert len(fake.asked) == 2


@pytest.mark.parametrize("wish", [{}, {"Retry-After": "3600"}])
def test_a_server_that_is_asked_too_often_is_left_alone(fake, registry, wish):
    fake.rules.append(lambda *_: (429, wish, b""))
    assert error_of(registry, name(fake)).code == "registry-unreachable"
    assert len(fake.asked) == 1


LATER = format_datetime(datetime.now(timezone.utc) + timedelta(days=1))


@pytest.mark.parametrize(
    ("status", "said", "seconds"),
    [
        (200, "5", None),
        (404, "5", None),
        (429, None, None),
        (429, "5", 5.0),
        (429, "31", None),
        (429, "soon", None),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (503, None, 0.0),
        (503, "7", 7.0),
        (503, "soon", 0.0),
        (503, "9" * 40, None),
        (503, LATER, None),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(status, said, seconds):
    headers = {} if said is None else {"Retry-After": said}
    assert wished_pause(status, headers) == seconds


def test_a_server_that_hangs(fake, registry):
    fake.rules.append(lambda *_: fake.released.wait(20) and None)
    error = error_of(registry, name(fake))
    assert error.code == "registry-unreachable"


def test_nobody_listens(make_job, tmp_path, fake):
    fake.close()
    job = make_job()
    job.enter("resolve")
    with Wire(job, fake.host, http=True, home=tmp_path) as way:
        assert error_of(Registry(way), name(fake)).code == "registry-unreachable"


def test_a_registry_without_tls_is_named(make_job, tmp_path, fake):
    job = make_job()
    job.enter("resolve")
    with Wire(job, fake.host, http=False, home=tmp_path) as way:
        error = error_of(Registry(way), name(fake))
    assert "http_registries" in error.hint


def test_a_registry_that_lies_about_a_digest(fake, registry):
    body = json.dumps(image()).encode()
    lie = {"Docker-Content-Digest": "sha256:" + "1" * 64}
    fake.rules.append(lambda *_: (200, lie, body))
    assert error_of(registry, name(fake)).code == "digest-mismatch"
    fake.rules[:] = [lambda *_: (200, {}, body)]
    assert registry.resolve(name(fake), "x86_64").digest == sha(body)
    wrong = name(fake, "sha256:" + "2" * 64)
    assert error_of(registry, wrong).code == "digest-mismatch"


@pytest.mark.parametrize("body", [b"", b"[1]", b"<html>", b'"x"', b"\xff"])
def test_an_answer_that_is_no_manifest(fake, registry, body):
    fake.rules.append(lambda *_: (200, {}, body))
    assert error_of(registry, name(fake)).code == "registry-unreachable"


def test_an_answer_without_end(fake, registry):
    fake.rules.append(lambda *_: (200, {}, b" " * (wire.MAX_BODY_BYTES + 1)))
    assert "too long" in error_of(registry, name(fake)).message


def test_redirects_lead_on_but_not_for_ever(fake, registry, other):
    digest = other.put("me/img", "1", image())
    there = f"http://{other.host}/v2/me/img/manifests/1"
    fake.rules.append(lambda *_: (307, {"Location": there}, b""))
    assert registry.resolve(name(fake), "x86_64").digest == digest
    here = f"http://{fake.host}/v2/me/img/manifests/1"
    fake.rules[:] = [lambda *_: (307, {"Location": here}, b"")]
    assert "circles" in error_of(registry, name(fake)).message


def challenge(fake: Fake) -> Callable[..., Answer | None]:
    """Everything needs a token that ``/token`` gives to the user ``me``."""
    realm = f'Bearer realm="http://{fake.host}/token",service="reg"'

    def rule(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        said = headers.get("authorization", "")
        if path.startswith("/token"):
            me = said == "Basic " + base64.b64encode(b"me:pass:word").decode()
            return (200, {}, b'{"token": "T"}') if me else (401, {}, b"")
        return None if said == "Bearer T" else (401, {"WWW-Authenticate": realm}, b"")

    return rule


def log_in(home: Path, host: str, entry: dict[str, str] | None = None) -> None:
    """As ``apptainer registry login`` does it."""
    folder = home / ".apptainer"
    folder.mkdir(exist_ok=True)
    auth = entry or {"auth": base64.b64encode(b"me:pass:word").decode()}
    (folder / "docker-config.json").write_text(json.dumps({"auths": {host: auth}}))


def test_a_login_by_token(fake, make_job, tmp_path, other):
    digest = fake.put("me/img", "1", image())
    fake.rules.append(challenge(fake))
    log_in(tmp_path, fake.host)
    job = make_job()
    job.enter("resolve")
    with Wire(job, fake.host, http=True, home=tmp_path) as way:
        assert Registry(way).resolve(name(fake), "x86_64").digest == digest
    asked = [path for _, path, _ in fake.asked if path.startswith("/token")]
    query = parse_qs(urlsplit(asked[0]).query)
    assert query == {"service": ["reg"], "scope": ["repository:me/img:pull"]}
    with Wire(job, fake.host, http=True, home=tmp_path / "nobody") as way:
        assert error_of(Registry(way), name(fake)).code == "base-not-found"


def test_credentials_stay_with_their_registry(fake, make_job, tmp_path, other):
    """Neither password nor token reaches the host that it redirects to."""
    body = b"blob"
    other.content["/elsewhere"] = body
    accept = challenge(fake)
    there = (307, {"Location": f"http://{other.host}/elsewhere"}, b"")
    fake.rules.append(lambda *a: accept(*a) or (there if "/blobs/" in a[1] else None))
    log_in(tmp_path, fake.host)
    job = make_job()
    with Wire(job, fake.host, http=True, home=tmp_path) as way:
        got: list[int] = []
        target = tmp_path / "blob"
        Registry(way).blob(name(fake), sha(body), target, job.check, got.append)
    assert target.read_bytes() == body
    assert sum(got) == 4
    assert any("authorization" in headers for _, _, headers in fake.asked)
    assert not any("authorization" in headers for _, _, headers in other.asked)


def test_a_login_by_password(fake, make_job, tmp_path):
    digest = fake.put("me/img", "1", image())
    basic = "Basic " + base64.b64encode(b"me:pass:word").decode()
    fake.rules.append(
        lambda _, path, headers: (
            None
            if headers.get("authorization") == basic
            else (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")
        )
    )
    caller = {
        "APPTAINER_DOCKER_USERNAME": "me",
        "APPTAINER_DOCKER_PASSWORD": "pass:word",
    }
    job = make_job(site=SiteAccess(caller=caller))
    with Wire(job, fake.host, http=True, home=tmp_path) as way:
        assert Registry(way).resolve(name(fake), "x86_64").digest == digest


def test_an_identity_token_is_exchanged(fake, make_job, tmp_path):
    digest = fake.put("me/img", "1", image())
    realm = f'Bearer realm="http://{fake.host}/token",service="reg"'

    def rule(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if path == "/token":
            form = parse_qs(fake.forms[-1])
            good = method == "POST" and form.get("refresh_token") == ["IT"]
            return (200, {}, b'{"access_token": "T"}') if good else (401, {}, b"")
        good = headers.get("authorization") == "Bearer T"
        return None if good else (401, {"WWW-Authenticate": realm}, b"")

    fake.rules.append(rule)
    log_in(tmp_path, f"http://{fake.host}/v1/", {"identitytoken": "IT"})
    with Wire(make_job(), fake.host, http=True, home=tmp_path) as way:
        assert Registry(way).resolve(name(fake), "x86_64").digest == digest


def test_a_blob_whose_transfer_breaks_is_fetched_again(fake, registry, tmp_path):
    body = b"x" * 300_000
    fake.content[f"/v2/me/img/blobs/{sha(body)}"] = body

    def rule(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        cut = {"Content-Length": str(len(body)), "Connection": "close"}
        return (200, cut, body[:1000]) if len(fake.asked) == 1 else None

    fake.rules.append(rule)
    got: list[int] = []
    target = tmp_path / "blob"
    registry.blob(name(fake), sha(body), target, lambda: None, got.append)
    assert target.read_bytes() == body
    assert sum(got) == len(body)


def test_a_damaged_blob_is_refused(fake, registry, tmp_path):
    fake.content[f"/v2/me/img/blobs/{sha(b'good')}"] = b"evil"
    with pytest.raises(BuildError) as caught:
        registry.blob(
            name(fake), sha(b"good"), tmp_path / "b", lambda: None, lambda _: None
        )
    assert caught.value.code == "digest-mismatch"


def test_a_compressed_transfer_is_not_asked_for(fake, registry, tmp_path):
    body = gzip.compress(b"layer")
    fake.content[f"/v2/me/img/blobs/{sha(body)}"] = body
    target = tmp_path / "b"
    registry.blob(name(fake), sha(body), target, lambda: None, lambda _: None)
    assert target.read_bytes() == body
    assert fake.asked[0][2]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("agent", "written", "host", "repository", "reference", "exact"),
    [
        (
            "docker",
            "python:3.11",
            HUB,
            "library/python",
            "3.11",
            "docker.io/library/python",
        ),
        ("docker", "me/img:1", HUB, "me/img", "1", "docker.io/me/img"),
        ("docker", "docker.io/a.b/c:1", HUB, "a.b/c", "1", "docker.io/a.b/c"),
        ("docker", "ghcr.io/o/i:2", "ghcr.io", "o/i", "2", "ghcr.io/o/i"),
        ("docker", "h:5000/i:2", "h:5000", "i", "2", "h:5000/i"),
        ("docker", "localhost/i:2", "localhost", "i", "2", "localhost/i"),
        ("oras", "host/o/i:2", "host", "o/i", "2", "host/o/i"),
    ],
)
def test_names(agent, written, host, repository, reference, exact):
    found = Name.of(agent, written)
    assert found == Name(host, repository, reference)
    assert not found.is_digest
    digest = "sha256:" + "a" * 64
    assert found.at(digest) == f"{exact}@{digest}"
    pinned = written.rpartition(":")[0] + "@" + digest
    assert Name.of(agent, pinned) == Name(host, repository, digest)


def test_whose_credentials_are_whose(tmp_path):
    docker = tmp_path / ".docker"
    docker.mkdir()
    pair = base64.b64encode(b"u:p").decode()
    auths = {"https://index.docker.io/v1/": {"auth": pair}, "a.org": {"auth": "?"}}
    (docker / "config.json").write_text(json.dumps({"auths": auths}))
    found = for_registry(HUB, tmp_path, {})
    assert found is not None
    assert (found.user, found.password) == ("u", "p")
    assert "p" not in repr(found).replace("Credentials", "").replace("password", "")
    assert for_registry("a.org", tmp_path, {}) is None
    assert for_registry("org", tmp_path, {}) is None
    (docker / "config.json").write_text("[")
    assert for_registry(HUB, tmp_path, {}) is None


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://ghcr.io/v2/", "http://p:1"),
        ("http://ghcr.io/v2/", "http://q:2"),
        ("https://a.site.org/", ""),
        ("https://site.org/", ""),
        ("https://offsite.org/", "http://p:1"),
        ("https://10.1.2.3/", ""),
        ("https://11.1.2.3/", "http://p:1"),
        ("http://127.0.0.1:5000/", ""),
        ("http://localhost:5000/", ""),
        ("https://h:8443/", ""),
        ("https://h/", "http://p:1"),
    ],
)
def test_proxies(url, proxy):
    variables = {"https_proxy": "http://p:1", "HTTP_PROXY": "q:2"}
    variables["no_proxy"] = ".site.org, 10.0.0.0/8,h:8443"
    found = Proxies.of(variables).for_url(url)
    assert found == ({url.partition(":")[0]: proxy} if proxy else {})
