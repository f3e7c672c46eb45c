"""Fetching one commit of a git repository that nobody vouches for.

Runs in the endpoint process, in the thread of a build, with the host's ``git``.

Guarantees: no hook, filter, credential helper, prompt or configuration of this host
takes part; nothing is spoken but HTTP, and that only without TLS where the URL says
so; every submodule's URL is one that policy allows; what would be written is counted
before it is. Large files kept elsewhere (git LFS) stay the pointers that they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from globus_compute_apptainer.build.payload.contents import Limits, set_time
from globus_compute_apptainer.build.payload.download import too_large
from globus_compute_apptainer.build.proxies import Proxies
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import policy, sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

MAX_DEPTH: Final = 4
"""Of submodules in submodules."""

_SETTINGS: Final = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.symlinks=true"),
    *("core.quotePath=false", "core.autocrlf=false", "core.askPass="),
    *("credential.helper=", "gc.auto=0", "maintenance.auto=false"),
    *("fetch.unpackLimit=1", "transfer.unpackLimit=1"),
    *("protocol.allow=never", "protocol.https.allow=always"),
    *("http.lowSpeedLimit=100", "http.lowSpeedTime=60", "http.followRedirects=initial"),
    *("submodule.recurse=false", "fetch.recurseSubmodules=false"),
    *("advice.detachedHead=false", "init.defaultBranch=main"),
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ABBREVIATED: Final = re.compile(r"[0-9a-f]{4,64}")
_ENTRY: Final = re.compile(r"(\d{6}) (\w+) ([0-9a-f]+) +(\d+|-)\t(.*)")
_NO_REF: Final = re.compile(
    r"couldn't find remote ref|not our ref|unadvertised object|no matching remote head"
    r"|upload-pack: not our|Server does not allow request"
)
_NOTHING_THERE: Final = re.compile(
    r"repository '.*' not found|returned error: 40[134]|could not read Username"
    r"|Authentication failed|not valid: is this a git repository|terminal prompts"
)
_DUMB: Final = re.compile(r"dumb http transport does not support")
_SHARED: Final[tuple[str, ...]] = (
    "PATH",
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "GIT_EXEC_PATH",
)


@dataclass(frozen=True)
class _Entry:
    """One line of ``git ls-tree``; ``size`` is 0 for a submodule."""

    kind: str
    commit: str
    size: int
    path: str


def fetch_repository(job: Job, url: str, root: Path, limits: Limits) -> str:
    """Put the files of one commit into a new directory.

    :param url: in normal form, ``git+https://HOST/PATH[#REF]``
    :param limits: on all files, those of submodules too
    :returns: the commit's name
    :raises BuildError: there is no such repository or ref (``payload-not-found``), it
        cannot be fetched (``payload-unreachable``), it is too large, or not acceptable
    """
    place, _, ref = url.removeprefix("git+").partition("#")
    if shutil.which("git") is None:
        raise job.error(
            "this endpoint has no git to fetch the payload with",
            code="payload-unreachable",
            hint="give an archive; most git hosts offer one of every commit",
        )
    folder = job.scratch / "git"
    folder.mkdir()
    try:
        return _Repository(job, place, folder / "0", limits).check_out(ref, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Repository:
    """One repository of which one commit is wanted.

    :param folder: for git's own files, to be made
    """

    def __init__(
        self, job: Job, url: str, folder: Path, limits: Limits, depth: int = 0
    ) -> None:
        self._job, self._url, self._folder = job, url, folder
        self._limits, self._depth = limits, depth
        self._limit = job.config.max_payload_size

    def check_out(self, ref: str, root: Path) -> str:
        root.mkdir(exist_ok=True)
        self._run(["init", "--quiet", "--bare", "--template=", str(self._folder)])
        commit = self._fetch(ref)
        entries = list(self._entries(commit))
        for entry in entries:
            self._limits.entry()
            self._limits.more(entry.size)
        self._run(
            [
                *(f"--git-dir={self._folder}", f"--work-tree={root}"),
                *("-c", "core.bare=false", "checkout", "--quiet", "--force", commit),
            ]
        )
        modules = [entry for entry in entries if entry.kind == "commit"]
        if modules:
            self._submodules(commit, modules, root)
        self._keep_times(commit, root)
        return commit

    def _fetch(self, ref: str) -> str:
        """The commit's name; it is in the repository from then on."""
        self._job.check()
        wanted = ref or "HEAD"
        if self._try(["--depth=1", self._url, wanted]):
            return self._name("FETCH_HEAD")
        said = "\n".join(self._job.transcript.tail)
        if _DUMB.search(said) and self._try([self._url, wanted]):
            return self._name("FETCH_HEAD")
        said = "\n".join(self._job.transcript.tail)
        if _ABBREVIATED.fullmatch(ref) and _NO_REF.search(said):
            everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            if self._try([self._url, *everything]) and (found := self._name(ref)):
                return found
        raise self._failed(ref)

    def _try(self, arguments: list[str]) -> bool:
        job = self._job
        argv = self._argv(
            f"--git-dir={self._folder}", "fetch", "--no-tags", "--progress", *arguments
        )
        shown = f"git fetch {' '.join(arguments)}"

        def on_line(line: str) -> None:
            self._check_size()
            if not line.startswith(("remote: ", "Receiving", "Resolving", "From ")):
                job.transcript.line(line)

        ended = job.attempt(argv, env=self._env(), shown=shown, on_line=on_line)
        self._check_size()
        return ended.ok

    def _check_size(self) -> None:
        """:raises BuildError: what came so far is too large"""
        size = 0
        for path in self._packs():
            with contextlib.suppress(FileNotFoundError):  # git has just renamed it
                size += path.stat().st_size
        if size > self._limit:
            raise too_large(self._job, None, self._limit)
        self._job.transcript.progress(size, None)

    def _packs(self) -> Iterator[Path]:
        place = self._folder / "objects/pack"
        yield from place.glob("tmp_pack_*")
        yield from place.glob("*.pack")

    def _name(self, ref: str) -> str:
        """The commit that ``ref`` means, in full; empty if there is none."""
        lines: list[str] = []
        argv = self._argv(
            *(f"--git-dir={self._folder}", "rev-parse", "--verify", "--quiet"),
            *("--end-of-options", f"{ref}^{{commit}}"),
        )
        self._job.attempt(argv, env=self._env(), on_line=lines.append)
        found = lines[-1].strip() if lines else ""
        return found if _COMMIT.fullmatch(found) else ""

    def _entries(self, commit: str) -> Iterator[_Entry]:
        lines: list[str] = []
        self._run(
            [
                *(f"--git-dir={self._folder}", "ls-tree", "-r", "-l", "--full-tree"),
                commit,
            ],
            lines,
        )
        for line in lines:
            found = _ENTRY.fullmatch(line)
            if found is None:
                raise self._refused(f"it has an entry that is not accepted: {line:.80}")
            size = int(found[4]) if found[4].isdigit() else 0
            yield _Entry(found[2], found[3], size, found[5])

    def _submodules(self, commit: str, modules: list[_Entry], root: Path) -> None:
        urls = self._module_urls(commit)
        for number, module in enumerate(modules):
            url = urls.get(module.path)
            if url is None:
                self._job.transcript.note(f"{module.path}: a submodule without a URL")
                continue
            if self._depth >= MAX_DEPTH or module.path.startswith('"'):
                raise self._refused(f"its submodule {module.path:.80} is not accepted")
            folder = self._folder.with_name(f"{self._folder.name}.{number}")
            inner = _Repository(
                self._job,
                self._allowed(url, module.path),
                folder,
                self._limits,
                self._depth + 1,
            )
            inner.check_out(module.commit, self._place(root, module.path))

    def _place(self, root: Path, path: str) -> Path:
        """The directory that git made for a submodule, never one behind a link.

        A tree that was not made by git may hold a link and a directory of one name.
        """
        place = root
        for part in path.split("/"):
            place /= part
            if place.is_symlink() or not place.is_dir():
                raise self._refused(f"its submodule {path:.80} is not a directory")
        return place

    def _module_urls(self, commit: str) -> dict[str, str]:
        """By path, as the commit's own .gitmodules has them."""
        lines: list[str] = []
        argv = self._argv(
            *(f"--git-dir={self._folder}", "config", f"--blob={commit}:.gitmodules"),
            *("--get-regexp", r"^submodule\..*\.(path|url)$"),
        )
        self._job.attempt(argv, env=self._env(), on_line=lines.append)
        found: dict[str, dict[str, str]] = {}
        for line in lines:
            key, _, value = line.partition(" ")
            name, _, what = key.rpartition(".")
            found.setdefault(name, {})[what] = value
        return {
            one["path"]: one["url"]
            for one in found.values()
            if {"path", "url"} <= {*one}
        }

    def _allowed(self, written: str, path: str) -> str:
        """The URL of a submodule, in full, if policy allows it."""
        url = urljoin(f"{self._url}/", written) if written[:1] == "." else written
        try:
            normal = sources.payload_url(f"submodule {path}", f"git+{url}")
            if self._job.policy is not None:
                policy.check_payload(normal, self._job.policy, f"submodule {path}")
        except SpecError as error:
            raise self._job.error(
                f"a submodule of the payload cannot be fetched: {error.message}",
                code=error.code,
                hint=error.hint,
                stage="policy" if error.code == "policy-denied" else None,
            ) from error
        if urlsplit(self._url).scheme == "https" and not normal.startswith("git+https"):
            raise self._refused(f"its submodule {path:.80} is fetched without TLS")
        return normal.removeprefix("git+").partition("#")[0]

    def _keep_times(self, commit: str, root: Path) -> None:
        """Give all files the commit's time, so that the same files are the same."""
        lines: list[str] = []
        self._run(
            [f"--git-dir={self._folder}", "show", "-s", "--format=%ct", commit], lines
        )
        when = int(lines[-1]) if lines and lines[-1].isdigit() else 0
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                set_time(Path(folder, name), when)

    def _run(self, arguments: list[str], lines: list[str] | None = None) -> None:
        """A command that is not expected to fail.

        :param lines: gets its output instead of the log
        """
        self._job.run(
            self._argv(*arguments),
            env=self._env(),
            shown=" ".join(["git", *(a for a in arguments if not a.startswith("-"))]),
            on_line=None if lines is None else lines.append,
        )

    def _argv(self, *arguments: str) -> list[str]:
        settings = [*_SETTINGS]
        if urlsplit(self._url).scheme == "http":
            settings.append("protocol.http.allow=always")
        return ["git", *(x for one in settings for x in ("-c", one)), *arguments]

    def _env(self) -> dict[str, str]:
        site = self._job.site
        shared = self._job.apptainer.environment()
        env: dict[str, str] = {name: shared[name] for name in _SHARED if name in shared}
        proxy = Proxies.of({**site.variables, **site.caller}).for_url(self._url)
        env |= {f"{scheme}_proxy": url for scheme, url in proxy.items()}
        if site.ca_bundle:
            env["GIT_SSL_CAINFO"] = str(site.ca_bundle)
        return {
            **env,
            "HOME": str(self._job.scratch / "git"),
            "LC_ALL": "C",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def _failed(self, ref: str) -> BuildError:
        said = "\n".join(self._job.transcript.tail)
        host = urlsplit(self._url).netloc
        if _NO_REF.search(said) or not said:
            return self._job.error(
                f"the repository {self._url} has no branch, tag or commit {ref!r:.80}",
                code="payload-not-found",
                hint="check what stands after '#' in `payload_url`; a commit must be "
                "reachable from a branch or a tag",
            )
        if _NOTHING_THERE.search(said):
            return self._job.error(
                f"there is no git repository at {self._url}",
                code="payload-not-found",
                hint="check `payload_url`; it must be readable without a login",
            )
        return self._job.error(
            f"the payload cannot be fetched from {host}",
            code="payload-unreachable",
            hint="check `payload_url` and this site's proxy settings",
        )

    def _refused(self, why: str) -> BuildError:
        return self._job.error(
            f"the repository {self._url} is not accepted: {why}", code="payload-invalid"
        )
