"""What runs inside a container: a small package that stands alone.

It is bound read-only into every container and imported there by whatever Python the
image has. Hence: syntax of 3.8, the standard library only (and ``dill``, which is bound
beside it), nothing of ours from elsewhere. The worker's side uses some of it, too.

One ``apptainer exec`` starts the *zygote* (:mod:`.zygote`), which serves the workers
of a node. For each it forks a *guard* (:mod:`.guard`) with a child that runs tasks
(:mod:`.agent`)::

    zygote ─┬─ guard ── child     of one worker: tasks, one after the other
            ├─ guard ── child     of another
            └─ guard ── child     forked in advance, of nobody yet
"""
