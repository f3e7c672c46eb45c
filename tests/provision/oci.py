"""A registry of a test's own, and OCI images to put there."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from provision import services


class OwnRegistry:
    """A writable registry that can be stopped and started on one address."""

    def __init__(self, store: Path) -> None:
        self._store, self._stack = store, ExitStack()
        self.address = ""

    def start(self) -> None:
        server = services.registry(self._store, readonly=False)
        self.address = self._stack.enter_context(server)

    def stop(self) -> None:
        self._stack.close()

    def push(self, layout: Path, tag: str, name: str) -> None:
        target = f"docker://{self.address}/{name}"
        tool = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"]
        call(*tool, f"oci:{layout}:{tag}", target)


def call(*argv: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Layered:
    """An OCI image in a layout, to which umoci adds layers."""

    def __init__(self, layout: Path, work: Path) -> None:
        self.layout, self._work, self._count = layout, work, 0

    def add(self, **files: str | None) -> None:
        """A layer of files: ``__`` in names stands for ``/``, a text that begins with
        ``->`` for a symbolic link, None for a directory."""
        self._count += 1
        root = self._work / f"layer{self._count}"
        root.mkdir()
        for name, text in files.items():
            path = root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.mkdir()
            elif text.startswith("->"):
                path.symlink_to(text[2:])
            else:
                path.write_text(text)
        archive = root.with_suffix(".tar")
        call("tar", "-C", str(root), "--owner=0", "--group=0", "-cf", str(archive), ".")
        self.add_archive(archive)

    def add_archive(self, archive: Path) -> None:
        image = f"{self.layout}:made"
        call("umoci", "raw", "add-layer", "--image", image, str(archive))

    def configure(self, *options: str) -> None:
        call("umoci", "config", "--image", f"{self.layout}:made", *options)
