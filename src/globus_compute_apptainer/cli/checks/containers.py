"""Can this machine build and run containers?

What Apptainer needs depends on how it was installed and who calls it: with its
set-user-id helper, or as full root, the kernel mounts images and most of this does
not matter; otherwise user namespaces and FUSE do it.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.bases.pull import READS_ARCHIVES
from globus_compute_apptainer.cli.findings import Finding, fail, ok, warn
from globus_compute_apptainer.cli.host import Host
from globus_compute_apptainer.cli.inputs import Settings
from globus_compute_apptainer.errors import HostError

_NAMESPACES = "/proc/sys/user/max_user_namespaces"
_DEBIAN_CLONE = "/proc/sys/kernel/unprivileged_userns_clone"
_APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


@dataclass(frozen=True)
class Installed:
    """An Apptainer and what its ``buildcfg`` says."""

    program: Apptainer
    libexec: Path
    conf: Path
    setuid: bool

    @property
    def privileged(self) -> bool:
        """Whether the kernel mounts its images, without user namespaces or FUSE."""
        return self.setuid or not self.program.build_flags


def installed(host: Host) -> Installed:
    """The Apptainer here.

    :raises HostError: there is none
    """
    program = host.apptainer()
    answer = host.run([program.path, "buildcfg"]).output
    facts = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    libexec = Path(facts.get("LIBEXECDIR", "/usr/libexec"), "apptainer", "bin")
    conf = Path(facts.get("APPTAINER_CONF_FILE", "/etc/apptainer/apptainer.conf"))
    setuid = host.uid != 0 and host.set_user_id(libexec / "starter-suid")
    return Installed(program, libexec, conf, setuid)


def apptainer(host: Host, _settings: Settings) -> Finding:
    """Apptainer, its version, and the way it will be called."""
    found = installed(host)
    if found.setuid:
        mode = "with its set-user-id helper"
    elif found.program.exec_flags:
        mode = "root without all capabilities, so in user namespaces"
    elif found.privileged:
        mode = "as root"
    else:
        mode = "in user namespaces"
    return ok(f"{found.program.version} at {found.program.path}, {mode}")


def user_namespaces(host: Host, _settings: Settings) -> Finding:
    """Whether a user namespace can be made, and if not, which setting forbids it."""
    ran = host.run(["unshare", "--user", "--map-root-user", "true"])
    if ran.status == 0:
        return ok("can be made")
    reason, fix = _why_no_namespaces(host)
    if ran.status == 127 and not reason:
        return ok("allowed by the kernel's settings (no unshare program to try it)")
    found = f"cannot be made: {reason or ran.output.strip() or 'not permitted'}"
    if _privileged(host):
        return warn(f"{found}; Apptainer itself can do without", fix)
    if reason == _APPARMOR_REASON:
        return warn(f"{found}; Apptainer may have a profile: see --deep", fix)
    return fail(found, fix)


_APPARMOR_REASON = "AppArmor restricts them"


def _why_no_namespaces(host: Host) -> tuple[str, str]:
    if host.text(_NAMESPACES) == "0":
        return (
            "user.max_user_namespaces is 0",
            "sysctl -w user.max_user_namespaces=15000",
        )
    if host.text(_DEBIAN_CLONE) == "0":
        return (
            "kernel.unprivileged_userns_clone is 0",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if host.text(_APPARMOR) == "1":
        fix = "install Apptainer's AppArmor profile (its package has it), or sysctl -w"
        return (
            _APPARMOR_REASON,
            f"{fix} kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return "", "allow user namespaces, or install Apptainer with its set-user-id helper"


def subordinate_ids(host: Host, _settings: Settings) -> Finding:
    """Ranges for the user, and the programs that map them."""
    if _full_root(host):
        return ok("not needed by root")
    files = ("/etc/subuid", "/etc/subgid")
    lacking = [file for file in files if not _has_range(host, file)]
    if lacking:
        return warn(
            f"{host.user} has no range in {' and '.join(lacking)}; apt packages and"
            " post scripts that change owners may fail",
            f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535"
            f" {host.user}  (other numbers if those are taken)",
        )
    programs = ("newuidmap", "newgidmap")
    missing = [name for name in programs if host.program(name) is None]
    if missing:
        return warn(
            f"{host.user} has ranges, but {' and '.join(missing)} is not installed",
            "install the package uidmap (Debian, Ubuntu), shadow-utils (Fedora, RHEL)",
        )
    return ok(f"{host.user} has ranges, newuidmap and newgidmap are there")


def _has_range(host: Host, file: str) -> bool:
    rows = (line.split(":") for line in (host.text(file) or "").splitlines())
    mine = (host.user, str(host.uid))
    return any(len(row) == 3 and row[0] in mine and row[2] != "0" for row in rows)


def fakeroot(host: Host, _settings: Settings) -> Finding:
    """The program that builds fall back to without subordinate ids."""
    found = host.program("fakeroot")
    if found is not None:
        return ok(str(found))
    if _full_root(host) or _has_range(host, "/etc/subuid"):
        return ok("not installed, and not needed with subordinate ids")
    return warn(
        "not installed; without subordinate ids, apt packages and post scripts need it",
        "install the package fakeroot",
    )


def fuse_device(host: Host, _settings: Settings) -> Finding:
    """Whether the user may mount with FUSE."""
    problem = host.open_error("/dev/fuse")
    if not problem:
        return ok("/dev/fuse can be opened")
    if _privileged(host):
        return ok(f"/dev/fuse: {problem}; the kernel mounts images here")
    fix = (
        "as root: modprobe fuse && chmod 666 /dev/fuse  (in a pod: pass the device in)"
    )
    if _squashfuse_is_missing(host, installed(host)):
        # Only then does Apptainer not even try, and unpacks images instead.
        return warn(f"/dev/fuse: {problem}; images are unpacked instead", fix)
    return fail(f"/dev/fuse: {problem}; no container can start", fix)


def fuse_tools(host: Host, _settings: Settings) -> Finding:
    """The programs that mount images and overlays without privileges."""
    here = installed(host)
    others = ("fuse2fs", "fuse-overlayfs")
    missing = ["squashfuse"] if _squashfuse_is_missing(host, here) else []
    missing += [name for name in others if host.program(name, here.libexec) is None]
    if not missing:
        return ok(", ".join(("squashfuse", *others)))
    if here.privileged:
        return ok(f"without {', '.join(missing)}; the kernel mounts images here")
    effect = (
        "every start of a container unpacks its whole image"
        if "squashfuse" in missing
        else "some images and overlays cannot be mounted"
    )
    return warn(f"missing: {', '.join(missing)}; {effect}", "install these packages")


def _squashfuse_is_missing(host: Host, here: Installed) -> bool:
    names = ("squashfuse_ll", "squashfuse")
    return all(host.program(name, here.libexec) is None for name in names)


def mksquashfs(host: Host, _settings: Settings) -> Finding:
    """The program that packs images, with the compression that is fast."""
    found = host.program("mksquashfs", installed(host).libexec)
    if found is None:
        return fail("not installed; no image can be built", _SQUASHFS_FIX)
    # Its help is on either stream, its status not always 0; 4.7 splits it up.
    helps = (host.run([str(found), option]).output for option in ("-help", "-help-all"))
    if not any(re.search(r"\bzstd\b", text) for text in helps):
        return warn(
            f"{found} cannot compress with zstd; packing with gzip takes several times"
            " as long",
            _SQUASHFS_FIX,
        )
    said = host.run([str(found), "-version"]).output
    version = re.search(r"mksquashfs version (\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) < READS_ARCHIVES:
        return warn(
            f"{found} is {version[1]}.{version[2]}; pulling base images takes several"
            " times as long",
            _SQUASHFS_FIX,
        )
    return ok(f"{found}, with zstd")


_SQUASHFS_FIX = "install the package squashfs-tools, 4.5 or newer"


def overlays(host: Host, _settings: Settings) -> Finding:
    """What Apptainer's own configuration allows."""
    conf = installed(host).conf
    allowed = _settings_of(host.text(conf) or "")
    overlay = allowed.get("enable overlay", "yes") != "no"
    underlay = allowed.get("enable underlay", "yes") != "no"
    preferred = allowed.get("enable underlay") == "preferred"
    if overlay and not preferred:
        return ok("overlays are allowed")
    if overlay or underlay:
        line = "enable underlay = preferred" if overlay else "enable overlay = no"
        return warn(
            f"`{line}` in {conf}; images in layers cannot run here. Those that are"
            " built here are flat, which takes longer",
            "as root: set `enable overlay = yes` and `enable underlay = yes`; or, where"
            " only tasks run here, `build.strategy: flat`",
        )
    return fail(
        f"neither overlays nor underlays are allowed in {conf}; paths that an image"
        " lacks cannot be bound",
        "as root: set `enable overlay = yes`, or at least `enable underlay = yes`",
    )


def _settings_of(conf: str) -> dict[str, str]:
    rows = (line.split("=", 1) for line in conf.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in rows if key[:1] != "#"}


def tiny_image(host: Host, _settings: Settings) -> Finding:
    """Build an image that holds one program, and run it."""
    found = installed(host).program
    with tempfile.TemporaryDirectory(prefix="gc-apptainer-doctor-") as folder:
        root, image = Path(folder, "root"), Path(folder, "tiny.sif")
        _copy_program(host, Path("/bin/true"), root)
        environ = found.environment(host.environ, APPTAINER_TMPDIR=folder)
        for what, argv in (
            ("built", found.build_argv(root, image)),
            ("run", found.exec_argv(image, ["/bin/true"], cwd="/")),
        ):
            ran = host.run(argv, environ=environ, timeout=120.0)
            if ran.status != 0:
                last = ran.output.strip().splitlines()[-3:]
                return fail(
                    f"a tiny image cannot be {what}: {' / '.join(last)}",
                    "the other findings say what is missing",
                )
    return ok("was built, and ran")


def _copy_program(host: Host, program: Path, root: Path) -> None:
    """A program and the libraries that it needs, at the same places below ``root``."""
    listed = host.run(["ldd", str(program)]).output
    for path in [program, *map(Path, re.findall(r"(/\S+) \(0x", listed))]:
        target = root.joinpath(*path.parts[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(0o755)


def _privileged(host: Host) -> bool:
    try:
        return installed(host).privileged
    except HostError:
        return host.uid == 0


def _full_root(host: Host) -> bool:
    try:
        return not host.apptainer().build_flags
    except HostError:
        return host.uid == 0
