"""Several processes that train together, as `torchrun` or `accelerate launch` starts them.

Nothing here needs torch before processes are joined, and in a single process all of it does
nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from msun_fastai.errors import UserError

JOINING = timedelta(minutes=5)  # for all to be started
WAITING = timedelta(hours=6)  # for one that works alone; a dead one is noticed long before
BEAT, SILENT, GRACE = 2.0, 30.0, 5.0  # seconds, of `_Watch`


def process_rank() -> tuple[int, int]:
    """This process's number and how many there are, as `torchrun` tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return process_rank()[0] == 0


def world() -> int:
    """How many processes have joined; 1 where none have."""
    dist = sys.modules.get("torch.distributed")  # who has joined has loaded it
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined_processes(device: str | None = None) -> Iterator[None]:
    """All processes that were started together, joined for what is done inside.

    device: the type on which they compute, `cuda` (each the GPU of its number on this machine) or
    `cpu`; by default `cuda` where there is one. One that dies ends the others within a
    minute, with an error. Raises `UserError` where they cannot be joined.
    """
    if process_rank()[1] == 1 or world() > 1:  # nothing to join, or somebody else's doing
        yield
        return
    watch = start_processes(device)
    yield
    barrier()  # whoever is ready first waits here for those that still work
    end_processes(watch)
    # not after an error: this process ends, others notice, and parting may wait for them


def start_processes(device: str | None = None) -> _Watch:
    """Join the processes that were started together; see `joined_processes`."""
    import torch
    import torch.distributed as dist

    rank, size = process_rank()
    kind = torch.device(device).type if device else "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "cpu"):
        raise UserError(f"device {device!r}: several processes compute on cuda or cpu")
    if kind == "cuda":
        local, found = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f"process {local} of this machine has no GPU of its own: it has {found}"
            )
        torch.cuda.set_device(local)
    # gloo beside nccl: counts and objects are on the CPU
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=JOINING))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAITING)
        agree([0])
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{size} processes could not be joined: {first}") from error
    return _Watch(store.clone(), rank, size)


def end_processes(watch: _Watch) -> None:
    """Part again."""
    import torch.distributed as dist

    watch.end()
    dist.destroy_process_group()


class _Watch(threading.Thread):
    """Ends this process where another one has gone.

    gloo's connections break at once when a process dies, but NCCL's need not, and a time limit on
    what processes do together cannot tell a dead one from one that is busy alone. So each gives a
    sign of life every `BEAT` seconds, and one that was `SILENT` for longer is gone.
    """

    def __init__(self, store: Any, rank: int, size: int):
        super().__init__(daemon=True)
        self.store, self.rank, self.size = store, rank, size
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        heard: dict[int, tuple[int, float]] = {}
        while not self.ended.wait(BEAT):
            try:
                self.store.add(f"alive/{self.rank}", 1)
                signs = [self.store.add(f"alive/{r}", 0) for r in range(self.size)]
            except RuntimeError:  # the store is the first process's
                self._give_up("the first process")
                return
            now = time.monotonic()
            for r, sign in enumerate(signs):
                if r not in heard or heard[r][0] != sign:
                    heard[r] = sign, now
                elif now - heard[r][1] > SILENT:
                    self._give_up(f"process {r} of {self.size}")
                    return

    def _give_up(self, who: str) -> None:
        # in the end they do go; and what the main thread has to say of it comes first
        if self.ended.wait(GRACE):
            return
        print(f"msun-fastai: {who} is gone: this one ends too", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)  # the main thread may wait for it inside a library

    def end(self) -> None:
        self.ended.set()


def barrier() -> None:
    """Wait until all processes are here."""
    agree([0])


def agree(flags: Sequence[int]) -> list[int]:
    """The largest value of each flag that any process has."""
    if world() == 1:
        return list(flags)
    import torch
    import torch.distributed as dist

    values = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def gathered(value: Any) -> list[Any]:
    """What each process gives, by its number."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values
