"""The kit of a build: what its programs see of the host, and what they leave behind.

Runs in the endpoint process. What runs in a build is the base's and the user's code,
as this user. It can write to the image and to this build's own ``work`` directory;
nothing that other builds use is ever visible to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.apptainer import bind
from globus_compute_apptainer.build.diagnose import UNKNOWN, Diagnosis, diagnose
from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system.plan import KIT, kit_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.site import SiteAccess
    from globus_compute_apptainer.errors import BuildError

_TO_COME: Final = re.compile(r"(\d+) upgraded, (\d+) newly installed")
_SET_UP: Final = re.compile(r"Setting up ([^\s:]+)")
_OURS: Final = re.compile(r"\+ exec \S+ -I -S -B |WARNING: No default remote in use")
_TRACED: Final = re.compile(r"\+ (.+)")
# Lists, archives and logs stay outside of the image; there is nothing to clean.
_APT_CONF: Final = f"""\
Dir::State::Lists "{KIT}/work/apt/lists";
Dir::Cache "{KIT}/work/apt/cache";
Dir::Log "{KIT}/work/apt/log";
Dpkg::Options {{ "--log=/dev/null"; "--force-unsafe-io"; }};
"""
_SHOWN_CHARACTERS: Final = 200


@dataclass(frozen=True)
class Kit:
    """A kit that has been laid out.

    :param folder: private to it: ``kit``, which is mounted at :data:`~.plan.KIT`, and
        ``work``, mounted in it and writable
    :param binds: that show it, for ``exec`` and ``build``
    """

    folder: Path
    binds: tuple[str, ...]

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def apt(self) -> Path:
        """Where apt's lists are."""
        return self.work / "apt"

    @property
    def outside(self) -> Path:
        """For temporary files of Apptainer itself; a build does not see it."""
        return self.folder / "tmp"

    def installed(self) -> Mapping[str, Any]:
        """The Debian packages that came, changed or went, for a lock."""
        before, after = _packages(self.work / "before"), _packages(self.work / "after")
        changed = sorted(set(after.items()) - set(before.items()))
        found: dict[str, Any] = {
            "packages": [
                {"name": name, "version": version, "arch": arch}
                for (name, arch), version in changed
            ]
        }
        if gone := sorted({name for name, _ in before.keys() - after.keys()}):
            found["removed"] = gone
        return found

    def ended(self) -> tuple[str, int] | None:
        """What of the post stage failed, ``post`` or ``postBuild``, and its status."""
        try:
            name, status = read_plain(self.work / "ended").split()
            return name, int(status)
        except (OSError, ValueError):
            return None


@contextlib.contextmanager
def laid_out(
    job: Job,
    name: str,
    *,
    apt: Sequence[str] = (),
    post: Sequence[str] = (),
    post_build: bool = False,
    markers: tuple[str, Sequence[str]] | None = None,
) -> Iterator[Kit]:
    """A kit in ``job.scratch``, removed at the end with all that a build left there.

    :param markers: the file that shows that the layer is there, and those that must
        be there; None: nothing is laid over anything
    """
    environment = {**job.site.variables, **dict(job.image.build_env)}
    files = kit_files(
        apt=apt, post=post, post_build=post_build, environment=environment
    )
    if markers is not None:
        files["marker.txt"] = f"{markers[0]}\n"
        files["layers.txt"] = "".join(f"{marker}\n" for marker in markers[1])
    folder = job.scratch / f"kit-{name}"
    folder.mkdir()
    try:
        # apt needs none, and a base's own code runs then.
        folders = job.site.folders if post or post_build or name == "pip" else ()
        yield Kit(folder, tuple(_lay_out(folder, job.site, files, folders)))
    finally:
        remove_tree(folder)


def _lay_out(
    folder: Path, site: SiteAccess, files: Mapping[str, str], folders: Sequence[Path]
) -> list[str]:
    """The kit is one directory, mounted read-only, with empty directories where the
    rest is mounted on. Root of a build's namespace can make mounts writable again: so
    it gets copies of this site's own files."""
    kit, work = folder / "kit", folder / "work"
    for place in (kit / "work", work / "tmp", work / "image-tmp", folder / "tmp"):
        place.mkdir(parents=True)
    (work / "image-tmp").chmod(0o1777)
    for name, text in {**files, "apt.conf": site.apt_conf() + _APT_CONF}.items():
        (kit / name).write_text(text, encoding="utf-8")
    program = resources.files(__package__).joinpath("stages.sh").read_bytes()
    (kit / "stages.sh").write_bytes(program)
    binds = [bind(kit, KIT, read_only=True), bind(work, f"{KIT}/work")]
    # Neither does a build see the host's, nor is what it leaves there in the image.
    binds += [bind(work / "image-tmp", place) for place in ("/tmp", "/var/tmp")]  # noqa: S108
    for number, place in enumerate(folders):
        (kit / "site" / str(number)).mkdir(parents=True)
        binds.append(bind(place, f"{KIT}/site/{number}", read_only=True))
    for name, path in {"ca.crt": site.ca_bundle, "uv.toml": site.uv_config}.items():
        if path is not None:
            shutil.copyfile(path, kit / name)
    return binds


@dataclass
class Follower:
    """Passes on what ``stages.sh`` says; tells progress, remembers the last command.

    :param traced: the command of ``post`` that began last, as the shell shows it
    """

    job: Job
    traced: str = ""
    _total: int = field(default=0)
    _done: int = field(default=0)

    def line(self, text: str) -> None:
        if _OURS.match(text):
            return
        self.job.transcript.line(text)
        if self.job.transcript.stage == "post":
            if found := _TRACED.fullmatch(text):
                self.traced = found[1]
        elif found := _TO_COME.match(text):
            self._total, self._done = int(found[1]) + int(found[2]), 0
            self._tell("")
        elif found := _SET_UP.match(text):
            self._done += 1
            self._tell(found[1])

    def _tell(self, what: str) -> None:
        total = max(self._total, self._done)
        self.job.transcript.progress(self._done, total, "packages", what)


def failure(job: Job, kit: Kit, follower: Follower) -> BuildError:
    """Why ``stages.sh`` failed; of post, which command and with what status."""
    transcript, ended = job.transcript, kit.ended()
    if ended is None or transcript.failure is not None:
        return job.failed()
    name, status = ended
    if name == "post" and follower.traced:
        transcript.command = job.site.redact(follower.traced)
    last = transcript.command[:_SHOWN_CHARACTERS]
    at = f"; the last command was `{last}`" if name == "post" else ""
    known = diagnose(transcript.stage, transcript.tail, job.image.agent)
    cause = f"{name} ended with status {status}{_meaning(status)}{at}"
    if known is not UNKNOWN:
        return job.diagnosed(
            Diagnosis(known.code, known.hint, f"{cause}: {known.message}")
        )
    return job.diagnosed(Diagnosis("build-failed", message=cause))


def _meaning(status: int) -> str:
    known = {126: "not executable", 127: "not found", 137: "killed by SIGKILL"}
    return f" ({known[status]})" if status in known else ""


def read_plain(path: Path) -> str:
    """A text that a build has left, which may be a link to anything.

    :raises OSError: it is not a plain file of its own
    """
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        if not os.path.isfile(f"/proc/self/fd/{number}"):  # noqa: PTH113
            raise OSError(f"{path.name} is not a file")
        return file.read(32 * 1024**2).decode("utf-8", errors="replace")


def _packages(path: Path) -> dict[tuple[str, str], str]:
    """(name, architecture) → version, of ``dpkg-query``'s answer; {} without one.

    It lies where the user's code can write, so that nothing about it is certain.
    """
    found = {}
    with contextlib.suppress(OSError):
        for line in read_plain(path).splitlines():
            fields = line.split("\t")
            if len(fields) == 4 and fields[0].endswith(" installed"):
                found[fields[1], fields[3]] = fields[2]
    return found
