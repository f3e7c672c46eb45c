"""From the end of a build's log to what to do about it.

Runs in the endpoint process; pure. The table is ordered, most specific first;
its patterns are messages that Apptainer, uv, pip, apt and compilers really print,
see ``tests/unit/build/messages``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Diagnosis:
    """A known cause of failure.

    :param code: as in :class:`~.errors.BuildError`
    :param hint: what to do; may be empty
    :param message: the cause in a few words; may be empty
    """

    code: str
    hint: str = ""
    message: str = ""


UNKNOWN: Final = Diagnosis("build-failed")


@dataclass(frozen=True)
class _Rule:
    pattern: str
    code: str
    message: str
    hint: str = ""
    stages: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()


_PULL: Final = ("pull",)
_PIP: Final = ("pip",)
_APT: Final = ("apt",)
# Where Apptainer itself talks, and not what it runs.
_HOST: Final = ("pull", "pack", "probe")
_FILES: Final = ("localimage", "docker-archive", "oci-archive", "oci")
_WHEELS: Final = "choose a version that has wheels for the Python of the base image"

_RULES: Final = (
    _Rule(
        r"No space left on device|Disk quota exceeded|\(os error 28\)"
        r"|You don't have enough free space",
        "disk-full",
        "the disk is full",
        "free some room (`apptainer cache clean`), or name larger directories: for "
        "builds `build.tmp_dir`, for Apptainer's cache APPTAINER_CACHEDIR in "
        "`build.env`",
    ),
    _Rule(
        r"Cannot allocate memory|\(os error 12\)|Killed signal terminated program cc1",
        "build-failed",
        "the build ran out of memory",
        "build where there is more memory; `build.tmp_dir` on a disk saves some",
    ),
    # Base images
    _Rule(
        r"manifest unknown|name unknown|repository name not known|404 Not Found",
        "base-not-found",
        "the registry has no such base image",
        "check the name and the tag of `base_image`",
        _PULL,
    ),
    _Rule(
        r"unauthorized|authentication required|(?<!permission )denied: "
        r"|access to the resource is|403 \(?Forbidden|invalid username/password",
        "base-not-found",
        "the registry does not give out this base image",
        "check the name; for a private one the endpoint's owner must log in "
        "(`apptainer registry login`)",
        _PULL,
    ),
    _Rule(
        r"toomanyrequests|429 Too Many Requests",
        "registry-unreachable",
        "the registry refuses further downloads for now",
        "wait, log in to the registry, or use a mirror of the base image",
        _PULL,
    ),
    _Rule(
        r"server gave HTTP response to HTTPS client",
        "registry-unreachable",
        "the registry speaks no TLS",
        "name it in `build.http_registries` if that is meant",
        _PULL,
    ),
    _Rule(
        r"x509: |tls: |certificate signed by unknown authority",
        "registry-unreachable",
        "the registry's certificate is not trusted here",
        "name the site's CA bundle as `build.ca_bundle`",
        _PULL,
    ),
    _Rule(
        r"connection refused|no such host|i/o timeout|network is unreachable"
        r"|no route to host|connection reset by peer|proxyconnect|EOF$"
        r"|Client\.Timeout exceeded|TLS handshake timeout"
        r"|Temporary failure in name resolution|503 Service Unavailable",
        "registry-unreachable",
        "the registry cannot be reached from this endpoint",
        "check the registry's name and this site's proxy settings",
        _PULL,
    ),
    _Rule(
        r"no such file or directory|could not open image|image format not recognized",
        "base-not-found",
        "there is no such base image file",
        "check the path; it must be readable on the endpoint's machine",
        _PULL,
        _FILES,
    ),
    _Rule(
        r"could not parse reference|invalid reference format|invalid tar header"
        r"|invalid layer mediatype|unsupported (MIME|media ?)type",
        "base-not-found",
        "that is not a base image of the kind asked for",
        "check `base_image` and its scheme (`docker://`, `oras://`, a file)",
        _PULL,
    ),
    _Rule(
        r"no default remote with library client",
        "registry-unreachable",
        "no library is configured on this endpoint",
        "the endpoint's owner must add a remote (`apptainer remote add`)",
        _PULL,
    ),
    _Rule(
        r"no image found in manifest list|no child with platform|does not match arch",
        "base-not-found",
        "the base image is not made for this machine's architecture",
        "choose a base image for this architecture",
        _PULL,
    ),
    # Python packages
    _Rule(
        r"does not satisfy Python|requires a different Python",
        "package-not-found",
        "a package does not support the Python of the base image",
        "ask for another version of the package, or another `python`",
        _PIP,
    ),
    _Rule(
        r"No such file or directory: '\S*(cc|[gc]\+\+|clang|cargo|make|cmake)'"
        r"|error: command '\S*(cc|[gc]\+\+|clang)' failed|(cc|\+\+|make): not found"
        r"|Python\.h: No such file"
        r"|No CMAKE_C(XX)?_COMPILER|Unknown compiler\(s\)"
        r"|linker `cc` not found|Rust.*(compiler|toolchain).*not found",
        "build-failed",
        "a package must be compiled, and the base image cannot",
        'add "build-essential" (and "python3-dev") to `apt`, or choose a version of '
        "the package that has wheels",
        _PIP,
    ),
    # What a package's own build says must not be taken for words of uv or pip, which
    # quote it indented; the beginning of a long quotation may be gone.
    _Rule(
        r"The build backend returned an error|Failed building wheel"
        r"|metadata-generation-failed|^(?!.*dependencies).*did not run successfully"
        r'|^ {4,}(Traceback \(most recent|File "[^"]*", line \d)',
        "build-failed",
        "a package could not be built from its sources",
        _WHEELS,
        _PIP,
    ),
    _Rule(
        r"lack of valid authentication credentials|HTTP status client error \(40[13]"
        r"|HTTP error 40[13] while|40[13] Client Error|40[13] Error, Credentials",
        "index-unreachable",
        "a package index gives nothing without credentials, or not with these",
        "the endpoint's owner must add user and password to the index's URL, in pip's "
        "or uv's settings or as `build.env`",
        _PIP,
    ),
    _Rule(
        r"Hash mismatch for|Conflicting archive URL hashes|DO NOT MATCH THE HASHES",
        "hash-mismatch",
        "a package's file is not the one that its hash names",
        "whoever gave the hash, or the index, has another file; check both",
        _PIP,
    ),
    _Rule(
        r"Bad CRC \(got|Failed to (extract archive|read metadata|unzip wheel): ",
        "hash-mismatch",
        "a package's file is damaged",
        "try again; if it stays so, the index, or a proxy, has a damaged file",
        _PIP,
    ),
    _Rule(
        r"(was|were) yanked",
        "package-not-found",
        "the only version that fits has been withdrawn (yanked) from the index",
        "ask for another version; a withdrawn one is taken only where it is asked for "
        "exactly (`==`)",
        _PIP,
    ),
    _Rule(
        r"has no wheels with a matching Python|we only found wheels for .* Python ABI"
        r"|is not a supported wheel on this platform|no wheels with a matching platform"
        r"|is not compatible with (the current|your) (Python|platform)"
        r"|incompatible with the current",
        "package-not-found",
        "a package has files for other Pythons or systems only, and no sources",
        "ask for another version of the package, or choose another base image",
        _PIP,
    ),
    _Rule(
        r"ResolutionImpossible|conflicting dependencies|which are incompatible$"
        r"|conclude that (.* and .* are incompatible|you require )",
        "package-conflict",
        "the packages asked for do not go together",
        "loosen the versions in `pip`",
        _PIP,
    ),
    _Rule(
        r"was not found in the (package registry|provided package locations|cache)"
        r"|No matching distribution found|there (is|are) no versions? of"
        r"|only (the following versions of )?.* (is|are) available"
        r"|Could not find a version that satisfies|has no wheels with a matching"
        r"|No solution found when resolving dependencies",
        "package-not-found",
        "no index has a package or version that was asked for",
        "check the names and versions in `pip`",
        _PIP,
    ),
    _Rule(
        r"invalid peer certificate|UnknownIssuer|CERTIFICATE_VERIFY_FAILED"
        r"|self[- ]signed certificate",
        "index-unreachable",
        "the package index's certificate is not trusted here",
        "name the site's CA bundle as `build.ca_bundle`",
        _PIP,
    ),
    _Rule(
        r"Connection refused|error sending request|Failed to fetch|dns error"
        r"|Could not connect|Request failed after|NewConnectionError|Max retries"
        r"|Temporary failure in name resolution|Network is unreachable"
        r"|operation timed out|Read timed out|HTTP status (client|server) error"
        r"|error reading a body from connection|request or response body error",
        "index-unreachable",
        "the package index cannot be reached from builds",
        "check this site's pip, uv and proxy settings, or set them as `build.env`",
        _PIP,
    ),
    # Debian packages
    _Rule(
        r"E: Unable to locate package|E: Package '.*' has no installation candidate"
        r"|E: Version '.*' for '.*' was not found|E: Couldn't find any package",
        "package-not-found",
        "the base image's distribution has no package that was asked for",
        "check the names and versions in `apt`",
        _APT,
    ),
    _Rule(
        r"E: Unable to correct problems|have unmet dependencies"
        r"|E: Packages need to be removed but remove is disabled",
        "package-conflict",
        "the Debian packages asked for do not go together or with the base image",
        "loosen the versions in `apt`",
        _APT,
    ),
    _Rule(
        r"dpkg was interrupted|E: Unmet dependencies\. Try",
        "build-failed",
        "the Debian packages of the base image are not in order",
        "repair them in the base image (`apt-get --fix-broken install`), or choose "
        "another one",
        _APT,
    ),
    _Rule(
        r"dpkg: error processing|Sub-process /usr/bin/dpkg returned an error",
        "build-failed",
        "a Debian package does not install into this base image",
        "its own words are in the output; try another version or base image",
        _APT,
    ),
    _Rule(
        r"The repository '.*' is not signed|NO_PUBKEY"
        r"|E: Release file for .* is (not|exp)",
        "index-unreachable",
        "the package mirror's signature is not accepted",
        "the base image may be too old; choose a newer one",
        _APT,
    ),
    _Rule(
        r"Certificate verification failed|certificate is NOT trusted",
        "index-unreachable",
        "the package mirror's certificate is not trusted here",
        "name the site's CA bundle as `build.ca_bundle`",
        _APT,
    ),
    _Rule(
        r"Could not resolve '|Could not connect to|Temporary failure resolving"
        r"|Connection timed out|E: Failed to fetch|Unable to fetch some archives"
        r"|does not have a Release file|Some index files failed to download",
        "index-unreachable",
        "the distribution's package mirror cannot be reached from builds",
        "check this site's proxy settings, or set them as `build.env`",
        _APT,
    ),
    _Rule(
        r"Failed to build `",
        "build-failed",
        "a package could not be built from its sources",
        _WHEELS,
        _PIP,
    ),
    # Apptainer on this machine
    _Rule(
        r"failed to mount \S+ to /root: no such file or directory",
        "build-failed",
        "this user's home directory does not exist on this machine",
        "create it, or have it corrected in the user database",
        _HOST,
    ),
    _Rule(
        r"%post section: signal: killed",
        "build-failed",
        "something killed the build; often that is a lack of memory",
        "try again; build where there is more memory",
    ),
    _Rule(
        r"fakeroot.*(not found|failed)|newuidmap|could not use fakeroot"
        r"|user namespace.*(not|disabled)|unprivileged_userns_clone"
        r"|max_user_namespaces",
        "build-failed",
        "this machine does not let this user build images",
        "the admin must allow unprivileged user namespaces, or add this user to "
        "/etc/subuid and /etc/subgid",
        _HOST,
    ),
    _Rule(
        r"exec: \"mksquashfs\"|mksquashfs.*not found|while searching for mksquashfs",
        "build-failed",
        "mksquashfs is not installed here",
        "the admin must install squashfs-tools",
        _HOST,
    ),
)


def diagnose(stage: str, tail: Iterable[str], agent: str = "docker") -> Diagnosis:
    """The first rule for ``stage`` that any line of ``tail`` matches.

    :param stage: where the build failed
    :param tail: the last lines of the output of the command that failed
    :param agent: kind of the base image, as in the definition file
    """
    text = "\n".join(tail)
    for rule in _RULES:
        if rule.stages and stage not in rule.stages:
            continue
        if rule.agents and agent not in rule.agents:
            continue
        if re.search(rule.pattern, text, re.MULTILINE | re.IGNORECASE):
            return Diagnosis(rule.code, rule.hint, rule.message)
    return UNKNOWN
