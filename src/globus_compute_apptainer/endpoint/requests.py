"""From what a client attached to a task to what is to be run.

Runs in the endpoint process, on its only task thread: no I/O, and a spec seen
before costs one dictionary look-up.
"""

from __future__ import annotations

import difflib
import functools
import logging
import marshal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import model, policy
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.spec.refusal import show
from globus_compute_apptainer.spec.stored import image_of
from globus_compute_apptainer.store.manifest import Manifest

log = logging.getLogger(__name__)

KEY = "container"
DIGEST = "sha256:"
_REMEMBERED = 1024

#: The canonical spec that the cache has for a spec digest; None if it has none.
Stored = Callable[[str], "Mapping[str, Any] | None"]


@dataclass(frozen=True)
class Wanted:
    """An image and how to run it: valid, allowed, and on a concrete base.

    :param policy: what the files of its payload may ask for; None: everything
    :param max_age: seconds after which the image is to be made anew; None: never
    """

    image: model.ImageSpec
    run: model.RunSpec
    name: str = ""
    policy: Policy | None = None
    max_age: float | None = None


def split(resource_specification: object) -> tuple[Any, Any]:
    """Take our key out of a resource specification.

    :returns: what the client attached under ``container`` (None if nothing), and
        the rest, unchanged, for upstream to judge. The argument is not modified.
    """
    if not isinstance(resource_specification, Mapping):
        return None, resource_specification
    rest = {k: v for k, v in resource_specification.items() if k != KEY}
    return resource_specification.get(KEY), rest


class Requests:
    """Turns attached values into :class:`Wanted`, remembering the last thousand.

    :param config: the endpoint's configuration
    :param python: Python minor version used where a spec names neither a base
        image nor a version
    :param stored: asked only for images that are named by their digest
    """

    def __init__(
        self, config: ContainersConfig, python: str, stored: Stored = lambda _: None
    ) -> None:
        self._config, self._python, self._stored = config, python, stored
        self._seen: OrderedDict[bytes, Wanted] = OrderedDict()
        self._digests: OrderedDict[str, model.ImageSpec] = OrderedDict()

    def wanted(self, attached: Any) -> Wanted | None:
        """What to run for a task.

        :param attached: from :func:`split`
        :returns: None for a task that runs on the host, as on the stock engine
        :raises SpecError: for what cannot be accepted
        :raises PolicyError: for what this endpoint does not allow
        """
        if attached is None:
            return self._default()
        if isinstance(attached, str):
            return self._named(attached)
        try:
            key = marshal.dumps(attached, 2)  # a fifth of the time of JSON
        except ValueError:
            key = b""  # nor is it JSON; parse() says so in words
        if key and (known := self._seen.get(key)) is not None:
            self._seen.move_to_end(key)
            return known
        spec = model.parse(attached)
        for note in spec.notes:
            log.info("a container spec: %s", note)
        wanted = self._allowed(spec)
        _remember(self._seen, key, wanted)
        _remember(self._digests, wanted.image.digest, wanted.image)
        return wanted

    def may_have(self, manifest: Manifest) -> bool:
        """Whether a client may run an image that is in the cache."""
        image = image_of(manifest.spec, manifest.spec_digest)
        try:
            return image is not None and bool(self._of_digest(image))
        except SpecError:
            return False

    def names(self) -> list[str]:
        """What the admin named, for clients to use."""
        return sorted(self._config.images)

    def _default(self) -> Wanted | None:
        default = self._config.default_container
        if default is None or isinstance(default, str):
            return None if default is None else self._named(default)
        return self._allowed(default)

    def _allowed(self, spec: model.ContainerSpec) -> Wanted:
        wanted = self._resolve(spec, rules=self._config.policy)
        policy.check(
            wanted.image,
            wanted.run,
            self._config.policy,
            default_base=spec.base_image is None,
        )
        return wanted

    def _named(self, name: str) -> Wanted:
        images = self._config.images
        if name in images:  # policy binds clients, not the admin
            return self._resolve(images[name], name)
        if name.startswith(DIGEST):
            return self._digest(name)
        near = difflib.get_close_matches(name[:80], images, n=1)
        known = ", ".join(sorted(images)) or "none"
        raise SpecError(
            "this endpoint has no image of that name",
            hint=f"its admin defined: {known}",
            code="image-unknown",
            value=show(name),
            nearest=near[0] if near else "",
        )

    def _digest(self, digest: str) -> Wanted:
        image = self._digests.get(digest)
        if image is None and (canonical := self._stored(digest)) is not None:
            image = image_of(canonical, digest)
        if image is None:
            raise SpecError(
                "this endpoint knows no image of that spec digest",
                hint="attach the spec itself: the image may have been removed, or made"
                " elsewhere; a digest of a spec is meant, not one of an image file",
                code="digest-unknown",
                value=show(digest),
            )
        return self._of_digest(image)

    def _of_digest(self, image: model.ImageSpec) -> Wanted:
        """What was allowed once, or to others, may be forbidden here and now."""
        if image.digest in self._named_digests:  # policy binds clients, not the admin
            return Wanted(image, model.RunSpec(), max_age=self._config.refresh)
        rules = self._config.policy
        own = model.ContainerSpec(python=image.python).image_spec(
            default_base=self._config.default_base, python=self._python
        )
        default = (image.agent, image.base_image) == (own.agent, own.base_image)
        policy.check(image, model.RunSpec(), rules, default_base=default)
        return Wanted(
            image, model.RunSpec(), policy=rules, max_age=self._config.refresh
        )

    @functools.cached_property
    def _named_digests(self) -> frozenset[str]:
        images = self._config.images.values()
        return frozenset(self._resolve(spec).image.digest for spec in images)

    def _resolve(
        self,
        spec: model.ContainerSpec,
        name: str = "",
        rules: Policy | None = None,
    ) -> Wanted:
        image = spec.image_spec(
            default_base=self._config.default_base, python=self._python
        )
        return Wanted(
            image,
            spec.run_spec,
            name or spec.name or "",
            policy=rules,
            max_age=self._config.refresh if spec.refresh is None else spec.refresh,
        )


def _remember(memory: OrderedDict[Any, Any], key: object, value: object) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
