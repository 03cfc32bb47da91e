"""cnnfast.train, but the process of rank KILL_RANK dies after its KILL_STEP-th step; torchrun runs this."""

from __future__ import annotations

import os
import signal

from torch.optim.optimizer import register_optimizer_step_post_hook

from cnnfast import distributed, train

steps = 0


def count(*unused: object) -> None:
    global steps
    steps += 1
    if steps == int(os.environ["KILL_STEP"]):
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ["RANK"] == os.environ["KILL_RANK"]:
    register_optimizer_step_post_hook(count)
distributed.leave(train.main())
