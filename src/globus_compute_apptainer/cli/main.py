"""``gc-apptainer``: the parser, and what an error becomes.

Runs in a person's shell. Every verb is one function of one module, imported when it
is asked for: ``gc-apptainer --version`` imports neither Parsl nor the SDK.

Exit codes:

====  ==================================================================
0     all went well
1     the thing itself failed: the build, the function that was tried
2     it was asked for wrongly: usage, spec, policy or configuration
3     this host or its image cache is not fit for it
130   interrupted (143: terminated); builds were stopped and cleaned up
====  ==================================================================
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from globus_compute_apptainer import __version__
from globus_compute_apptainer.cli import output
from globus_compute_apptainer.errors import (
    ConfigError,
    ContainerError,
    HostError,
    SpecError,
    StoreError,
)

OK, FAILED, USAGE, UNSUITABLE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
_BROKEN_PIPE = 141

_EPILOG = """\
exit codes:
  0    all went well
  1    the thing itself failed (a build, the function that was tried)
  2    it was asked for wrongly (usage, spec, policy or configuration)
  3    this host or its image cache is not fit for it
  130  interrupted (143: terminated); builds were stopped and cleaned up
"""
_SPEC_HELP = (
    "JSON or YAML file, - for standard input, inline JSON starting with {, or the name "
    "of an image that the configuration defines; also what people have: a file as "
    "--from takes it"
)
_ORIGIN_HELP = (
    "requirements.txt, environment.yml, pyproject.toml, uv.lock, pylock.toml, a script "
    "with a # /// script block, or a directory as repo2docker reads it"
)
_IMAGE_HELP = "digest of image or spec (8 digits are enough), name, or spec"
_TRY_USAGE = "gc-apptainer try [options] SPEC -- python FILE.py:FUNCTION [ARG ...]"
_RUN_USAGE = (
    "gc-apptainer run-worker [options] (--spec SPEC | --image IMAGE) -- COMMAND"
)
_AFTER_DASHES = {  # verb: what has to stand there
    "try": f"a function: {_TRY_USAGE}",
    "run-worker": f"a command: {_RUN_USAGE}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; see the module for what it returns."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parse(arguments)
    try:
        with _terminated_as_interrupt():
            status = _verb(options.verb)(options)
            sys.stdout.flush()
            return status
    except ContainerError as error:
        output.error(error, as_json=options.json)
        return exit_code(error)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == __package__.partition(".")[0]:
            raise
        output.error(_not_installed(missing), as_json=options.json)
        return UNSUITABLE
    except BrokenPipeError:  # as of `gc-apptainer images | head -1`
        # What is still to be written must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except _TerminatedError:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED


def exit_code(error: ContainerError) -> int:
    """What the shell is told of an error."""
    if isinstance(error, (SpecError, ConfigError)):
        return USAGE
    if isinstance(error, (HostError, StoreError)):
        return UNSUITABLE
    return FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Options, with what follows ``--`` as ``command``."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:cut])
    options.command = arguments[cut + 1 :]
    needed = _AFTER_DASHES.get(options.verb, "")
    if needed and not options.command:
        _parser().error(f"{options.verb} needs {needed}")
    if options.command and not needed:
        _parser().error(f"{options.verb} takes nothing after --")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gc-apptainer",
        description="Containers for Globus Compute tasks: check this machine, build "
        "images, look at them, take them elsewhere, try a function in one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    doctor = _add_verb(verbs, "doctor", "check that this machine can do all this")
    doctor.add_argument(
        "--deep", action="store_true", help="also build and run a tiny image"
    )
    build = _add_verb(verbs, "build", "build a spec's image, unless it is there")
    _add_build_options(build)
    _add_verb(verbs, "images", "list the images in the cache")
    show = _add_verb(verbs, "show", "say what is known of one image in the cache")
    show.add_argument("image", metavar="IMAGE", help=_IMAGE_HELP)
    _add_upkeep(verbs)
    export = _add_verb(
        verbs, "export", "write an image with definition file, lock and SBOM"
    )
    export.add_argument("image", metavar="IMAGE", help=f"{_IMAGE_HELP}, then built")
    export.add_argument("folder", metavar="DIR", help="made if it is not there")
    export.add_argument(
        "--flat", action="store_true", help="one file system, for tools without layers"
    )
    attempt = _add_verb(
        verbs, "try", "run one function in a spec's image, as an endpoint would"
    )
    attempt.usage = _TRY_USAGE
    attempt.add_argument("spec", metavar="SPEC", help=_SPEC_HELP)
    worker = _add_verb(
        verbs, "run-worker", "become a program, such as a worker pool, in an image"
    )
    _add_run_options(worker)
    for verb in (build, export, attempt, worker):
        verb.add_argument(
            "-v", "--verbose", action="store_true", help="show the build's output"
        )
    return parser


def _add_run_options(worker: argparse.ArgumentParser) -> None:
    worker.usage = _RUN_USAGE
    what = worker.add_mutually_exclusive_group(required=True)
    what.add_argument("--spec", metavar="SPEC", help=_SPEC_HELP)
    what.add_argument(
        "--image",
        metavar="IMAGE",
        help="name of an image that the configuration defines, then built; or, of one "
        "in the cache, its digest or name",
    )
    worker.add_argument(
        "--bind",
        metavar="SOURCE[:TARGET[:ro]]",
        action="append",
        default=[],
        help="a directory to show inside, too; may be repeated",
    )


def _add_upkeep(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prune = _add_verb(verbs, "prune", "remove from the cache what is not used")
    prune.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed"
    )
    prune.add_argument(
        "--to",
        metavar="SIZE",
        help="how much may stay, such as 100GB (config: max_cache_size, else nothing)",
    )
    verify = _add_verb(verbs, "verify", "read images whole, and look for damage")
    verify.add_argument("image", metavar="IMAGE", nargs="?", help=_IMAGE_HELP)
    verify.add_argument("--all", action="store_true", help="all images in the cache")


def _add_build_options(build: argparse.ArgumentParser) -> None:
    what = build.add_mutually_exclusive_group(required=True)
    what.add_argument("spec", metavar="SPEC", nargs="?", help=_SPEC_HELP)
    what.add_argument("--from", metavar="PATH", dest="origin", help=_ORIGIN_HELP)
    what.add_argument(
        "--locked",
        metavar="FILE",
        help="lock.json of an export, or a manifest.json: build exactly that, or say "
        "what can no longer be had",
    )
    build.add_argument(
        *("--fresh", "--force"),
        action="store_true",
        help="build anew even if it is there, with tags and versions resolved anew",
    )
    build.add_argument(
        "--python", metavar="MINOR", help="of what PATH allows (as in 3.12)"
    )
    for option, what_for in (
        ("extra", "an extra of the project at PATH, too"),
        ("group", "a dependency group of the project at PATH, too"),
        ("skip", "without a package of PATH, or a setting such as tool.uv.index"),
    ):
        build.add_argument(
            f"--{option}", metavar="NAME", action="append", default=[], help=what_for
        )


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, does: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument(
        "--config",
        metavar="FILE",
        help="YAML with the containers: block, at its top or under engine:",
    )
    verb.add_argument(
        "--cache-dir", metavar="DIR", help="where images are kept (config: cache_dir)"
    )
    verb.add_argument(
        "--json", action="store_true", help="results and errors as JSON, for programs"
    )
    return verb


def _verb(name: str) -> Callable[[argparse.Namespace], int]:
    module = "try_" if name == "try" else name.replace("-", "_")
    run: Callable[[argparse.Namespace], int]
    run = importlib.import_module(f"{__package__}.{module}").run
    return run


def _not_installed(missing: str) -> HostError:
    return HostError(
        f"the Python package {missing!r} is not installed in {sys.prefix}",
        hint="pip install 'globus-compute-apptainer[endpoint]'",
        code="endpoint-extra-missing",
    )


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, unwound like Ctrl-C so that builds are cleaned up."""


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> NoReturn:
        raise _TerminatedError

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
