"""The real servers that tests and the demo talk to, started as the current user.

Runs on: the test machine, in a test process or from a shell. A server belongs to the
`with` block that started it: it listens on 127.0.0.1 only, keeps its files in the
folder it is given, and is gone, with every process it started, when the block ends.
A SIGKILL of the process that holds the block leaves them running.

    with registry(Path("/var/lib/gc-apptainer-test/registry")) as address:
        ...  # docker://{address}/python:3.11-slim
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

LOOPBACK = "127.0.0.1"
START_DEADLINE_SECONDS = 60.0
STOP_SIGNALS = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))  # with seconds to obey
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25


class ServiceError(RuntimeError):
    """A server did not come up; holds the end of its log."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        self.name = name
        self.log = log
        super().__init__(f"{name}: {reason}; end of {log}:\n{_tail(log)}")


@dataclass(frozen=True)
class RabbitMQ:
    """A running broker: where it listens, and a user that may do everything."""

    host: str
    port: int
    user: str
    password: str
    vhost: str

    @property
    def amqp_url(self) -> str:
        """The default virtual host is named "/", which a URL writes as %2F."""
        vhost = self.vhost.replace("/", "%2F")
        return f"amqp://{self.user}:{self.password}@{self.host}:{self.port}/{vhost}"


@contextlib.contextmanager
def registry(store: Path, *, readonly: bool = True) -> Iterator[str]:
    """Serve the container images under `store`; yields `127.0.0.1:PORT`.

    Read-only works on a store that the current user cannot write to.
    """
    program = _program("docker-registry", "docker-registry")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gca-registry-") as folder:
        config = Path(folder, "config.yml")
        config.write_text(
            _registry_config(store, port, readonly=readonly), encoding="utf-8"
        )
        log = Path(folder, "registry.log")
        with _running("docker-registry", [program, "serve", str(config)], log) as check:
            _wait_until(lambda: check() and _answers_http(port), "docker-registry", log)
            yield f"{LOOPBACK}:{port}"


def _registry_config(store: Path, port: int, *, readonly: bool) -> str:
    return f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {json.dumps(str(store))}}}
  maintenance:
    uploadpurging: {{enabled: false}}
    readonly: {{enabled: {str(readonly).lower()}}}
http:
  addr: {LOOPBACK}:{port}
  secret: {secrets.token_hex(16)}
"""


@contextlib.contextmanager
def rabbitmq(workdir: Path) -> Iterator[RabbitMQ]:
    """Run a broker with a node, data, cookie and port mapper of its own in `workdir`.

    The folder may be empty, or from an earlier run: then the queues in it are back, on
    another port.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    broker = RabbitMQ(LOOPBACK, free_port(), "gca", _password(workdir), "/")
    env = _rabbitmq_environment(workdir, broker)
    epmd = _program("epmd", "erlang-base")
    mapper = [epmd, "-address", LOOPBACK, "-port", env["ERL_EPMD_PORT"]]
    # In the foreground and first: else the broker starts it as a daemon, which stays.
    with _running("epmd", mapper, workdir / "epmd.log", env):
        log = workdir / "rabbitmq.log"
        with _running("rabbitmq-server", [_rabbitmq_program()], log, env) as check:
            _wait_until(
                lambda: check() and _answers_amqp(broker.port), "rabbitmq-server", log
            )
            yield broker


def _rabbitmq_environment(workdir: Path, broker: RabbitMQ) -> dict[str, str]:
    """Nothing of the machine's own broker: /etc/rabbitmq is passed over."""
    config = workdir / "rabbitmq.conf"
    config.write_text(
        f"listeners.tcp.1 = {broker.host}:{broker.port}\n"
        f"default_user = {broker.user}\n"
        f"default_pass = {broker.password}\n"
        "disk_free_limit.absolute = 50MB\n"
        "log.console.level = info\n",
        encoding="utf-8",
    )
    return {
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(workdir),  # Erlang keeps its cookie there
        "ERL_EPMD_ADDRESS": broker.host,
        "ERL_EPMD_PORT": str(free_port()),
        "RABBITMQ_NODENAME": "gca@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-kernel inet_dist_use_interface {127,0,0,1}"
        ),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(workdir / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(workdir / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(workdir / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(workdir / "data"),
        "RABBITMQ_LOG_BASE": str(workdir / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(workdir / "rabbitmq.pid"),
    }


def _password(workdir: Path) -> str:
    """One per data folder: the broker makes its user only when the folder is new."""
    file = workdir / "password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(16), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _rabbitmq_program() -> str:
    """The script itself: the command on PATH refuses all but root and rabbitmq."""
    folder = Path("/usr/lib/rabbitmq")
    scripts = [
        *folder.glob("bin/rabbitmq-server"),
        *folder.glob("lib/rabbitmq_server-*/sbin/rabbitmq-server"),
    ]
    if not scripts:
        raise _not_installed("rabbitmq-server", "rabbitmq-server")
    return str(scripts[0])


def _answers_amqp(port: int) -> bool:
    """A broker that is ready greets with a method frame."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def free_port() -> int:
    """A port nobody listens on now; another process may take it before the caller."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(
    name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[Callable[[], bool]]:
    """Run a server in its own process group; the check it yields raises if it died."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )

    def check() -> bool:
        if process.poll() is not None:
            raise ServiceError(name, f"ended with status {process.returncode}", log)
        return True

    try:
        yield check
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """TERM, then KILL, for the process and all that it left in its group."""
    for number, patience in STOP_SIGNALS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while _group_lives(process) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a leader that nobody reaped would count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], name: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(
                name, f"not ready in {START_DEADLINE_SECONDS:.0f} s", log
            )
        time.sleep(POLL_SECONDS)


def _answers_http(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
            return connection.recv(16).startswith(b"HTTP/1.")
    except OSError:
        return False


def _program(command: str, package: str) -> str:
    """Daemons live in folders that an ordinary user's PATH may lack."""
    folders = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(command, path=folders)
    if found is None:
        raise _not_installed(command, package)
    return found


def _not_installed(command: str, package: str) -> FileNotFoundError:
    return FileNotFoundError(f"{command} is not installed (Debian package: {package})")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _stop(_number: int, _frame: object) -> NoReturn:
    """SIGTERM leaves through the `with` blocks, as an interrupt does."""
    raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one server until SIGTERM; its address is the first line printed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    servers = parser.add_subparsers(dest="server", required=True)
    images = servers.add_parser("registry", help="serve the base images")
    images.add_argument("store", type=Path)
    images.add_argument("--writable", action="store_true")
    broker = servers.add_parser("rabbitmq", help="run a message broker")
    broker.add_argument("workdir", type=Path)
    options = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, _stop)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        if options.server == "registry":
            server = registry(options.store, readonly=not options.writable)
            print(stack.enter_context(server), flush=True)
        else:
            print(stack.enter_context(rabbitmq(options.workdir)).amqp_url, flush=True)
        while True:
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
