"""One of two machines that share a cache: ``machine.py CACHE SCRATCH DO``.

Run in namespaces of its own, so that it has another host name and other process ids.
``DO``: ``all`` asks for every image and prints how many it built; ``hold`` holds a
lock, with half an image made, until it is killed; ``take`` asks for the image of that
lock, with little patience for those who are silent.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from hammer import SPECS, Quick, is_right, spec

from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.presence import Presence, Timing


def main() -> None:
    cache, scratch, do = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    impatient = Timing(beat=0.2, expiry=1.0, confirm=0.3, poll=0.05)
    presence = Presence(impatient if do == "take" else None)
    store, built = Store(cache, presence=presence), []
    store.prepare()
    if do == "hold":
        with (
            store.lock(spec(0).digest, cancel=threading.Event()),
            store.workspace() as w,
        ):
            (w / "image.sif").write_text("half of an image")
            print("held", flush=True)
            signal.pause()
    config = BuildConfig(tmp_dir=scratch)
    service = ImageService(store, lambda: Quick(built.append), config)  # type: ignore[arg-type, return-value]
    wanted = [spec(0)] if do == "take" else map(spec, range(SPECS))
    right = {is_right(service, one) for one in wanted} == {True}
    service.close()
    left = sorted(path.name for path in (cache / "v2/tmp").iterdir())
    owner = presence.owner()
    told = {"right": right, "built": len(built), "left": left, "host": owner.host}
    print(json.dumps({**told, "namespace": owner.namespace}))


if __name__ == "__main__":
    main()
