"""Bad machines, and what the doctor says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.cli import doctor, main
from globus_compute_apptainer.cli.checks import CHECKS, network
from globus_compute_apptainer.cli.findings import Finding, examine
from globus_compute_apptainer.cli.host import Host, Mount, Ran, Reply, find_mount
from globus_compute_apptainer.cli.inputs import Settings
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.errors import BuildError, HostError

Findings = dict[str, Finding]


def findings(host: Any, settings: Settings) -> Findings:
    return {finding.name: finding for finding in examine(CHECKS, host, settings)}


def not_ok(found: Findings) -> dict[str, str]:
    return {name: f.level for name, f in found.items() if f.level != "ok"}


def with_block(**block: Any) -> Settings:
    block.setdefault("cache_dir", "/cache")
    return Settings(block, ContainersConfig.parse(block))


def test_on_a_good_machine_all_is_ok(host, settings) -> None:
    found = findings(host, settings)
    assert not_ok(found) == {}
    assert list(found) == [name for name, _ in CHECKS]
    assert all(finding.found and not finding.fix for finding in found.values())


def test_whatever_is_not_ok_comes_with_a_fix(host, settings) -> None:
    host.found = HostError("Apptainer is not installed here", hint="install it")
    host.files, host.programs, host.bytes_free = {}, {}, {Path("/cache"): 1}
    host.ran = dict.fromkeys(host.ran, Ran(1, "no"))
    host.problems = {"write": "no", "lock": "no", "open /dev/fuse": "no"}
    host.replies = {url: Reply(0, "no") for url in _asked(host, settings)}
    found = findings(host, settings)
    assert len(not_ok(found)) > 10
    for name in not_ok(found):
        assert found[name].fix, name


def test_a_check_that_crashes_is_a_finding(host, settings) -> None:
    def crash(_host: Host, _settings: Settings) -> Finding:
        raise ZeroDivisionError("boom")

    (found,) = examine([("x", crash)], host, settings)
    assert (found.name, found.level) == ("x", "fail")
    assert "ZeroDivisionError: boom" in found.found


def test_an_error_of_ours_is_a_finding_with_its_hint(host, settings) -> None:
    def refuse(_host: Host, _settings: Settings) -> Finding:
        raise BuildError("no room", hint="make some")

    (found,) = examine([("x", refuse)], host, settings)
    assert found == Finding("fail", "no room", "make some", "x")


def test_no_apptainer(host, settings) -> None:
    host.found = HostError("Apptainer is not installed here", hint="install it")
    found = findings(host, settings)
    assert found["apptainer"] == Finding(
        "fail", "Apptainer is not installed here", "install it", "apptainer"
    )


@pytest.mark.parametrize(
    ("apptainer", "uid", "setuid", "mode"),
    [
        (Apptainer("/a", "1.4.5", (), ("--fakeroot",)), 1000, False, "in user names"),
        (Apptainer("/a", "1.4.5", (), ("--fakeroot",)), 1000, True, "set-user-id"),
        (Apptainer("/a", "1.4.5", ("--userns",), ("--fakeroot",)), 0, True, "capabil"),
        (Apptainer("/a", "1.4.5"), 0, False, "as root"),
    ],
)
def test_the_mode_of_apptainer(host, settings, apptainer, uid, setuid, mode) -> None:
    host.found, host.uid = apptainer, uid
    host.ran["a"] = host.ran["apptainer"]
    if setuid:
        host.setuid = {Path("/usr/libexec/apptainer/bin/starter-suid")}
    found = findings(host, settings)["apptainer"]
    assert found.level == "ok"
    assert "1.4.5 at /a" in found.found
    assert mode in found.found


@pytest.mark.parametrize(
    ("file", "value", "level", "fix"),
    [
        ("user/max_user_namespaces", "0", "fail", "user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "fail", "userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "warn", "AppArmor"),
        ("kernel/nothing", "0", "fail", "allow user namespaces"),
    ],
)
def test_user_namespaces_forbidden(host, settings, file, value, level, fix) -> None:
    host.ran["unshare"] = Ran(1, "unshare: Operation not permitted")
    host.files[f"/proc/sys/{file}"] = value
    found = findings(host, settings)["user namespaces"]
    assert found.level == level
    assert fix in found.fix


def test_user_namespaces_matter_less_with_the_set_user_id_helper(
    host, settings
) -> None:
    host.ran["unshare"] = Ran(1, "")
    host.files["/proc/sys/user/max_user_namespaces"] = "0"
    host.setuid = {Path("/usr/libexec/apptainer/bin/starter-suid")}
    assert findings(host, settings)["user namespaces"].level == "warn"


def test_without_unshare_the_settings_decide(host, settings) -> None:
    host.ran["unshare"] = Ran(127, "not found")
    assert findings(host, settings)["user namespaces"].level == "ok"
    host.files["/proc/sys/user/max_user_namespaces"] = "0"
    assert findings(host, settings)["user namespaces"].level == "fail"


@pytest.mark.parametrize("row", ["", "bob:100000:65536", "ada:100000:0", "ada"])
def test_no_subordinate_ids(host, settings, row) -> None:
    host.files["/etc/subuid"] = row
    found = findings(host, settings)["subordinate ids"]
    assert found.level == "warn"
    assert "/etc/subuid" in found.found
    assert "/etc/subgid" not in found.found
    assert "usermod" in found.fix
    assert found.fix.count("ada") == 1


def test_no_program_to_map_subordinate_ids(host, settings) -> None:
    del host.programs["newgidmap"]
    found = findings(host, settings)["subordinate ids"]
    assert (found.level, "newgidmap" in found.found) == ("warn", True)


def test_fakeroot_is_needed_only_without_subordinate_ids(host, settings) -> None:
    del host.programs["fakeroot"]
    assert findings(host, settings)["fakeroot"].level == "ok"
    del host.files["/etc/subuid"]
    assert findings(host, settings)["fakeroot"].level == "warn"


def test_full_root_needs_none_of_it(host, settings) -> None:
    host.found, host.uid, host.user = (
        Apptainer("/usr/bin/apptainer", "1.4.5"),
        0,
        "root",
    )
    for name in ("squashfuse_ll", "fuse-overlayfs", "fakeroot", "newuidmap"):
        del host.programs[name]
    host.files, host.problems = {}, {"open /dev/fuse": "No such file or directory"}
    assert not_ok(findings(host, settings)) == {}


def test_no_fuse(host, settings) -> None:
    host.problems["open /dev/fuse"] = "Permission denied"
    found = findings(host, settings)
    assert (found["fuse device"].level, found["fuse tools"].level) == ("fail", "ok")
    assert "Permission denied" in found["fuse device"].found
    assert "chmod" in found["fuse device"].fix


def test_without_squashfuse_images_are_unpacked_with_and_without_fuse(
    host, settings
) -> None:
    del host.programs["squashfuse_ll"]
    found = findings(host, settings)
    assert (found["fuse device"].level, found["fuse tools"].level) == ("ok", "warn")
    assert "squashfuse" in found["fuse tools"].found
    host.problems["open /dev/fuse"] = "No such file or directory"
    found = findings(host, settings)
    assert (found["fuse device"].level, found["fuse tools"].level) == ("warn", "warn")


def test_squashfuse_by_its_other_name(host, settings) -> None:
    host.programs["squashfuse"] = host.programs.pop("squashfuse_ll")
    assert findings(host, settings)["fuse tools"].level == "ok"


def test_no_mksquashfs_is_worse_than_an_old_one(host, settings) -> None:
    zstd = "\nCompressors available:\n\tgzip\n\tzstd"
    for version, level in (("4.4", "warn"), ("4.5", "ok"), ("5.0", "ok")):
        host.ran["mksquashfs"] = Ran(1, f"mksquashfs version {version} (2021){zstd}")
        assert findings(host, settings)["mksquashfs"].level == level
    host.ran["mksquashfs"] = Ran(1, "Compressors available:\n\tgzip")
    assert findings(host, settings)["mksquashfs"].level == "warn"
    del host.programs["mksquashfs"]
    assert findings(host, settings)["mksquashfs"].level == "fail"


@pytest.mark.parametrize(
    ("conf", "level"),
    [
        ("enable overlay = yes", "ok"),
        ("enable overlay = no", "warn"),
        ("#enable overlay = no", "ok"),
        ("enable overlay = no\nenable underlay = no", "fail"),
        ("enable overlay = try\nenable underlay = no", "ok"),
        ("enable underlay = yes", "ok"),
        ("enable overlay = yes\nenable underlay = preferred", "warn"),
    ],
)
def test_overlays_forbidden(host, settings, conf, level) -> None:
    host.files["/etc/apptainer/apptainer.conf"] = conf
    assert findings(host, settings)["overlays"].level == level


def test_a_read_only_cache(host, settings) -> None:
    host.problems["write"] = "Read-only file system"
    found = findings(host, settings)
    assert found["image cache"].level == found["cache locks"].level == "fail"
    assert "Read-only file system" in found["image cache"].found
    assert "cache_dir" in found["image cache"].fix


def test_locks_that_do_not_exclude(host, settings) -> None:
    host.problems["lock"] = "two processes got the same lock"
    assert findings(host, settings)["cache locks"].level == "fail"


def test_what_locks_are_worth_is_said_where_other_machines_share_them(host, settings):
    assert "noticed at once" in findings(host, settings)["cache locks"].found
    host.mounted = Mount("/", "nfs4")
    found = findings(host, settings)["cache locks"]
    assert (found.level, "3 minutes of silence" in found.found) == ("ok", True)


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0.5, "ok"), (-3600.0, "warn"), (3600.0, "warn"), (None, "fail")],
)
def test_clocks_that_differ(host, settings, ahead, level) -> None:
    host.clock = ahead
    assert findings(host, settings)["cache clock"].level == level


def test_shared_caches_that_are_not_there(host) -> None:
    settings = with_block(shared_caches=["/site/images"])
    found = findings(host, settings)["other caches"]
    assert (found.level, "/site/images" in found.found) == ("warn", True)
    host.caches.add(Path("/site/images"))
    assert findings(host, settings)["other caches"].found == "1 shared caches"


def test_caches_of_other_versions_are_named(host, tmp_path) -> None:
    for name in ("v1", "v2", "v3", "vault"):
        (tmp_path / name).mkdir()
    found = findings(host, with_block(cache_dir=str(tmp_path)))["other caches"]
    assert found.level == "warn"
    assert found.found.endswith(f"{tmp_path}/v1, {tmp_path}/v3")


@pytest.mark.parametrize(
    ("free", "level"), [(1e9, "fail"), (10e9, "warn"), (30e9, "ok")]
)
def test_a_full_disk(host, settings, free, level) -> None:
    host.bytes_free = {Path("/cache"): int(free)}
    found = findings(host, settings)["cache room"]
    assert found.level == level
    assert "GB free" in found.found


def test_little_scratch(host, settings) -> None:
    host.bytes_free = {Path("/dev/shm"): 1000**3}
    assert findings(host, settings)["build scratch"].level == "warn"


@pytest.mark.parametrize(
    ("kind", "provider", "level", "says"),
    [
        ("lustre", "SlurmProvider", "ok", "shared"),
        ("nfs4", "", "ok", "shared"),
        ("ext4", "", "ok", "this machine only"),
        ("xfs", "LocalProvider", "ok", "this machine only"),
        ("ext4", "SlurmProvider", "warn", "does not look shared"),
        ("tmpfs", "LocalProvider", "warn", "lost when the machine restarts"),
    ],
)
def test_what_the_cache_is_on(host, settings, kind, provider, level, says) -> None:
    host.mounted = Mount("/cache", kind)
    about = dataclasses.replace(settings, provider=provider)
    found = findings(host, about)["cache filesystem"]
    assert (found.level, says in found.found) == (level, True)


def test_a_dead_hook(host, settings) -> None:
    host.ran["python"] = Ran(1, "Traceback\nAttributeError: no 'ApptainerEngine'")
    found = findings(host, settings)["engine hook"]
    assert found.level == "fail"
    assert "AttributeError: no 'ApptainerEngine'" in found.found


def test_an_engine_of_that_name_that_is_not_ours(host, settings) -> None:
    host.ran["python"] = Ran(0, "globus_compute_endpoint.engines.apptainer")
    assert findings(host, settings)["engine hook"].level == "fail"


def test_the_endpoint_of_another_environment(host, settings) -> None:
    program = Path("/other/bin/globus-compute-endpoint")
    host.programs["globus-compute-endpoint"] = program
    found = findings(host, settings)["endpoint program"]
    assert (found.level, str(program) in found.found) == ("warn", True)
    assert "PATH=/venv/bin" in found.fix


def test_no_endpoint_program(host, settings) -> None:
    del host.programs["globus-compute-endpoint"]
    assert findings(host, settings)["endpoint program"].level == "fail"


def test_an_endpoint_program_off_the_path(host, settings, monkeypatch) -> None:
    inside = Path("/venv/bin/globus-compute-endpoint")
    monkeypatch.setattr(
        host, "program", lambda name, *folders: inside if folders else None
    )
    found = findings(host, settings)["endpoint program"]
    assert (found.level, "not on PATH" in found.found) == ("warn", True)


def test_upstream_outside_the_window(host, settings, monkeypatch) -> None:
    problem = "parsl 2020.1 is outside the supported window"
    monkeypatch.setattr(upstream, "outside_window", lambda: problem)
    found = findings(host, settings)["upstream versions"]
    assert (found.level, found.found) == ("warn", problem)


def test_no_uv_and_a_broken_uv(host, settings) -> None:
    host.ran["uv"] = Ran(127, "Exec format error")
    assert findings(host, settings)["uv"].level == "fail"
    del host.programs["uv"]
    assert findings(host, settings)["uv"].level == "fail"


def test_without_git_there_are_no_payloads_from_repositories(host, settings) -> None:
    del host.programs["git"]
    assert findings(host, settings)["git"].level == "warn"


def test_an_index_that_cannot_be_reached_does_not_show_its_password(host) -> None:
    url = "https://ada:s3cret-pass@pypi.site.org/simple"
    host.environ["PIP_INDEX_URL"] = url
    host.replies[f"{url}/pip/"] = Reply(0, f"no route to {url}")
    found = findings(host, with_block())["package index"]
    assert found.level == "warn"
    assert "pypi.site.org" in found.found
    assert "s3cret" not in found.found


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_an_index_that_answers_otherwise(host, settings, status) -> None:
    host.environ["UV_DEFAULT_INDEX"] = "https://pypi.site.org/simple/"
    host.replies["https://pypi.site.org/simple/pip/"] = Reply(status, "Whatever")
    found = findings(host, settings)["package index"]
    assert found.level == "warn"
    assert str(status) in found.found


def test_an_index_in_a_folder(host, settings, monkeypatch) -> None:
    host.environ["PIP_INDEX_URL"] = "file:///srv/pypi/simple"
    assert findings(host, settings)["package index"].level == "ok"
    monkeypatch.setattr(host, "existing", lambda path: Path("/"))
    assert findings(host, settings)["package index"].level == "warn"


def test_no_index_at_all(host, settings) -> None:
    host.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/srv/wheels"}
    found = findings(host, settings)["package index"]
    assert (found.level, "/srv/wheels" in found.found) == ("ok", True)
    assert not any("pypi" in url for url in host.asked)


@pytest.mark.parametrize(
    ("base", "registry"),
    [
        ("docker://python:3.11-slim", "registry-1.docker.io"),
        ("docker://library/python", "registry-1.docker.io"),
        ("docker://ghcr.io/o/i:1", "ghcr.io"),
        ("docker://localhost/i", "localhost"),
        ("docker://127.0.0.1:5000/i", "127.0.0.1:5000"),
        ("oras://ghcr.io/o/i", "ghcr.io"),
        ("library://alpine", None),
        ("/images/base.sif", None),
    ],
)
def test_the_registry_of_a_base(base, registry) -> None:
    assert network.registry_of(base) == registry


def test_the_default_base_decides_which_registry_is_asked(host) -> None:
    settings = with_block(
        default_base="docker://127.0.0.1:5000/python:{python}",
        build={"http_registries": ["127.0.0.1:5000"]},
    )
    host.replies["http://127.0.0.1:5000/v2/"] = Reply(0, "Connection refused")
    found = findings(host, settings)["base registry"]
    assert (found.level, "Connection refused" in found.found) == ("warn", True)


def test_a_registry_that_wants_credentials_is_there(host, settings) -> None:
    host.replies["https://registry-1.docker.io/v2/"] = Reply(401, "Unauthorized")
    assert findings(host, settings)["base registry"].level == "ok"


def test_the_verb_prints_a_table_and_ends_with_0(monkeypatch, host, capsys) -> None:
    monkeypatch.setattr(doctor, "Host", lambda _program: host)
    assert main.main(["doctor", "--cache-dir", "/cache"]) == 0
    text = capsys.readouterr().out
    assert "22 ok, 0 to look at, 0 failed" in text
    assert "engine hook" in text


def test_the_verb_ends_with_3_if_something_failed(monkeypatch, host, capsys) -> None:
    host.found = HostError("Apptainer is not installed here", hint="install it")
    monkeypatch.setattr(doctor, "Host", lambda _program: host)
    assert main.main(["doctor", "--cache-dir", "/cache", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report[0] == {
        "name": "apptainer",
        "level": "fail",
        "found": "Apptainer is not installed here",
        "fix": "install it",
    }


def test_warnings_do_not_fail_the_verb(monkeypatch, host, capsys) -> None:
    del host.programs["git"]
    monkeypatch.setattr(doctor, "Host", lambda _program: host)
    assert main.main(["doctor", "--cache-dir", "/cache"]) == 0
    assert "→ install the package git" in capsys.readouterr().out


TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /scratch rw - lustre 10.0.0.1@tcp:/fs rw
31 22 0:31 / /scratch/my\\040data rw shared:3 master:1 - nfs4 host:/x rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/home/ada", Mount("/", "ext4")),
        ("/scratch", Mount("/scratch", "lustre")),
        ("/scratching", Mount("/", "ext4")),
        ("/scratch/my data/x", Mount("/scratch/my data", "nfs4")),
    ],
)
def test_the_mount_of_a_path(path, mount) -> None:
    assert find_mount(TABLE, Path(path)) == mount


def _asked(host: Any, settings: Settings) -> list[str]:
    findings(host, settings)
    return host.asked
