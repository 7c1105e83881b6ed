"""The command line, killed or cut off from its disk where the environment says: for `test_kills`.

KILL=step:3 kills the process in the middle of its third training step, KILL=write:2 in the middle
of its second checkpoint, of which half is on the disk, KILL=written:2 when all of it is, before it
gets its name. FILE_LIMIT=2 lets no file grow beyond a few bytes from the second checkpoint on, as a
full disk would. OBEY=1 takes from root the right to write where permissions say no.
"""

import ctypes
import os
import resource
import signal
import sys

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of Linux' prctl.h and capability.h


def main():
    if os.environ.pop("OBEY", None):
        # gone from the next program on, which is this one again; nobody but root has it
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    where, _, number = os.environ.get("KILL", "").partition(":")
    if where == "step":
        kill_in_step(int(number))
    elif where:
        kill_in_write(int(number), half=where == "write")
    if limit := os.environ.get("FILE_LIMIT"):
        limit_files(int(limit))
    from msun_fastai.cli import main

    main(sys.argv[1:])


def kill_in_step(number):
    from msun_fastai.callbacks.step import TrainingStep

    real, steps = TrainingStep._gradients, iter(range(1, 10_000))

    def gradients(self, xb, yb, size):
        real(self, xb, yb, size)
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingStep._gradients = gradients


def kill_in_write(number, half):
    real, writes = os.fsync, iter(range(1, 10_000))

    def fsync(fd):
        if "step-" in os.readlink(f"/proc/self/fd/{fd}") and next(writes) == number:
            if half:
                os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(fd)

    os.fsync = fsync


def limit_files(number):
    from msun_fastai.checkpoints import CheckpointFolder

    real, writes = CheckpointFolder.write, iter(range(1, 10_000))

    def write(self, step, state):
        if next(writes) == number:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096 * number, hard))
        return real(self, step, state)

    CheckpointFolder.write = write


if __name__ == "__main__":
    main()
