"""Where the benchmark works: one folder, one registry, and the base images in it.

Every way builds on the same bytes: the base images that provisioning made, with one
layer more that holds the site's pip configuration and certificates, since the peer has
no way to pass them. A Python 3.9 (Debian's bullseye) is bootstrapped here, for the peer
as published. Bases are kept in the folder from run to run.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from provision import services

PROVISION = Path(services.__file__).parent
PACKAGES = "python3,python3-pip,python3-venv,python-is-python3,ca-certificates"
PLAIN = "python:3.11-slim"
CA_INSIDE = "/etc/ssl/certs/site-bundle.crt"
ZSTD = ("--mksquashfs-args", "-comp zstd -Xcompression-level 3")
TIMEOUT_SECONDS = 900


class WayFailedError(Exception):
    """What was to be measured did not work; says what, with its last lines."""


def call(
    argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: object
) -> str:
    """Run a program to its good end; what it printed."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        timeout=TIMEOUT_SECONDS,
        **options,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise WayFailedError(f"{' '.join(words)[:200]}: {done.returncode}\n{tail}")
    return done.stdout


@dataclass
class Stage:
    """The folder and the registry of one run."""

    folder: Path
    registry: str
    apptainer: Apptainer = field(default_factory=Apptainer.find)

    @cached_property
    def site(self) -> SiteAccess:
        return SiteAccess.from_host(os.environ, BuildConfig())

    def environment(self, cache: str = "apptainer", **extra: str) -> dict[str, str]:
        """For calls of Apptainer: a cache of our own, and no TLS on loopback.

        :param cache: name of the folder for Apptainer's cache
        """
        own = {
            "APPTAINER_CACHEDIR": str(self.folder / cache),
            "APPTAINER_NOHTTPS": "1",
        }
        return self.apptainer.environment(**own, **extra)

    def base(self, name: str) -> str:
        """``registry/repository:tag`` of a base: ``3.11``, ``3.9``, ``3.11-apt``.

        Made when it is first asked for.
        """
        if name == "plain":
            return f"{self.registry}/{PLAIN}"
        python, _, apt = name.partition("-")
        reference = f"{self.registry}/configured/python:{name}"
        files = self._apt_files(python) if apt else self._site_files()
        source = self.base(python) if apt else self._bootstrapped(python)
        stamp = self.folder / "bases" / f"{name}.stamp"
        today = datetime.datetime.now(datetime.timezone.utc).date()
        mark = hashlib.sha256(
            repr((today, sorted(files)) if apt else sorted(files.items())).encode()
        ).hexdigest()
        if not (stamp.exists() and stamp.read_text() == mark):
            self._derive(source, files, reference)
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(mark)
        return reference

    def base_sif(self, name: str) -> Path:
        """The base as a local file, packed with zstd."""
        reference = self.base(name)
        sif = self.folder / "bases" / f"{name}.sif"
        stamp = self.folder / "bases" / f"{name}.stamp"
        if not sif.exists() or sif.stat().st_mtime < stamp.stat().st_mtime:
            argv = [
                self.apptainer.path,
                "build",
                *self.apptainer.build_flags,
                "--force",
            ]
            call(
                [*argv, *ZSTD, sif, f"docker://{reference}"],
                env=self.environment(),
            )
        return sif

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder in memory where there is room for it, else on disk."""
        memory = Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4e9
        with tempfile.TemporaryDirectory(
            prefix="build-bench-", dir=memory if roomy else None
        ) as name:
            yield Path(name)

    def _bootstrapped(self, python: str) -> str:
        if python == "3.11":
            return f"{self.registry}/{PLAIN}"
        suites = {"3.9": "bullseye", "3.13": "trixie"}
        reference = f"{self.registry}/python:{python}-slim"
        done = self.folder / "bases" / f"{python}.bootstrapped"
        if not done.exists():
            call([PROVISION / "base-image", suites[python], PACKAGES, reference])
            done.parent.mkdir(exist_ok=True)
            done.touch()
        return reference

    def _site_files(self) -> dict[str, bytes]:
        """pip's settings and certificates; places on this host's disk stay out."""
        pip = indexes.from_pip(os.environ, Path(sys.prefix))
        settings = {
            "index-url": pip.default,
            "extra-index-url": " ".join(url for url in pip.extra if _remote(url)),
            "trusted-host": " ".join(pip.trusted),
            "proxy": pip.proxy,
            "cert": CA_INSIDE if self.site.ca_bundle else "",
            "disable-pip-version-check": "1",
        }
        lines = [f"{name} = {value}" for name, value in settings.items() if value]
        files = {"etc/pip.conf": "\n".join(["[global]", *lines, ""]).encode()}
        if self.site.ca_bundle:
            files[CA_INSIDE.lstrip("/")] = self.site.ca_bundle.read_bytes()
        return files

    def _apt_files(self, python: str) -> dict[str, bytes]:
        """What the peer's ``apt-get install PACKAGE`` needs: lists, and a yes."""
        files = {"etc/apt/apt.conf.d/99yes": b'APT::Get::Assume-Yes "true";\n'}
        with tempfile.TemporaryDirectory() as name:
            lists = Path(name)
            command = [
                *("apt-get", "-o", "Dir::State::Lists=/lists"),
                *("-o", "Debug::NoLocking=1", "update"),
            ]
            argv = self.apptainer.exec_argv(
                self.base_sif(python), command, binds=[f"{lists}:/lists"], cwd="/"
            )
            call(argv, env=self.environment())
            for path in sorted(lists.iterdir()):
                if path.is_file():
                    files[f"var/lib/apt/lists/{path.name}"] = path.read_bytes()
        return files

    def _derive(self, source: str, files: Mapping[str, bytes], target: str) -> None:
        """Push ``source`` with one layer more to ``target``."""
        copy = ["skopeo", "--insecure-policy", "copy"]
        with tempfile.TemporaryDirectory() as name:
            layout, layer = Path(name, "oci"), Path(name, "layer.tar")
            with tarfile.open(layer, "w") as archive:
                for path, content in sorted(files.items()):
                    entry = tarfile.TarInfo(path)
                    entry.size, entry.mode = len(content), 0o644
                    archive.addfile(entry, io.BytesIO(content))
            here = f"oci:{layout}:base"
            call([*copy, "--src-tls-verify=false", f"docker://{source}", here])
            call(["umoci", "raw", "add-layer", "--image", f"{layout}:base", layer])
            call([*copy, "--dest-tls-verify=false", here, f"docker://{target}"])


def _remote(url: str) -> bool:
    return "://" in url and not url.startswith("file:")


@contextlib.contextmanager
def stage(folder: Path, store: Path) -> Iterator[Stage]:
    """Open ``folder``, with a registry that holds the bases of ``store``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "registry"
    with services.registry(own, readonly=False) as address:
        copied = folder / "bases" / "plain.copied"
        if not copied.exists():
            with services.registry(store) as provisioned:
                argv = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false"]
                source = f"docker://{provisioned}/{PLAIN}"
                target = f"docker://{address}/{PLAIN}"
                call([*argv, "--dest-tls-verify=false", source, target])
            copied.parent.mkdir(exist_ok=True)
            copied.touch()
        yield Stage(folder, address)
