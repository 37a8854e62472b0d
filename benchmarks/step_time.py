"""The command line, with the mean time of training steps of the host, and their memory on a GPU, as JSON.

    python benchmarks/step_time.py FILE 32 96 0 run --device cuda -- -t -cfg StyleGAN2.yaml -data letters -save DIR

The numbers are: steps before those that count, steps that count (all of a step: images, generator, discriminator and
penalties), and the most channels of a StyleGAN2 (see narrow.py; 0 leaves it whole). The training ends with them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from narrow import narrow

from studiogan_guidance.cli import main
from studiogan_guidance.plugin.worker import GuidedWorker

GIB = 2**30


class Clock:
    """Times the steps of a training from ``first`` on, ``count`` of them, and writes ``path``."""

    def __init__(self, path: Path, first: int, count: int) -> None:
        self.path = path
        self.first = first
        self.count = count
        self.started = 0.0

    def begin(self, step: int) -> None:
        """Called where a step begins; ends the process after the last that counts."""
        on_gpu = torch.cuda.is_initialized()
        if step == self.first:
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self.started = time.perf_counter()
        if step != self.first + self.count:
            return

        # Write down.
        if on_gpu:
            torch.cuda.synchronize()
        values: dict[str, Any] = {"ms": 1000 * (time.perf_counter() - self.started) / self.count}
        if on_gpu:
            values["gib"] = torch.cuda.max_memory_allocated() / GIB
        self.path.write_text(json.dumps(values))
        sys.exit()


def follow(clock: Clock) -> None:
    """Let the clock see the steps of the host's worker, which begin with the generator's."""
    worker: Any = GuidedWorker

    def train_generator(self: Any, current_step: int) -> Any:
        clock.begin(current_step)
        return super(worker, self).train_generator(current_step=current_step)

    worker.train_generator = train_generator


if __name__ == "__main__":
    path, first, count, channels = (sys.argv.pop(1) for _ in range(4))
    follow(Clock(Path(path), int(first), int(count)))
    if int(channels):
        narrow(int(channels))
    main()
