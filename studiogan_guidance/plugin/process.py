"""What a program of the host changes in the process that it runs in is put back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

FLAGS = (  # owner and name
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)


@contextmanager
def kept() -> Iterator[None]:
    """Put everything process-wide back at the end that the host's programs change.

    That is: the environment, the flags of cuDNN, the random states (of GPUs, too, where CUDA is in use), how processes
    are started, and the current folder. What stays are the libraries that were imported, with their loggers, and W&B's
    own thread and handlers at exit.
    """
    multiprocessing: Any = torch.multiprocessing

    # Remember how everything is.
    environment = dict(os.environ)
    folder = os.getcwd()
    flags = [(owner, name, getattr(owner, name)) for owner, name in FLAGS]
    start_method = multiprocessing.get_start_method(allow_none=True)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    try:
        yield
    finally:
        # Put it back.
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for owner, name, value in flags:
            setattr(owner, name, value)
        if multiprocessing.get_start_method(allow_none=True) != start_method:
            multiprocessing.set_start_method(start_method, force=True)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpu_states is not None:
            torch.cuda.set_rng_state_all(gpu_states)
