"""One of several processes that train together: `python tests/ranks.py FOLDER CASE ...`.

What it ends with is written to `FOLDER/CASE-RANK-OF.pt`: weights, logged figures, what it saw.
"""

import os
import signal
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.metrics import F1Score, accuracy
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from msun_fastai.callbacks.alignment import aligning
from msun_fastai.callbacks.distributed import DistributedTraining
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.shapes import shapes_source
from msun_fastai.learner import msun_learner
from msun_fastai.processes import agree, gathered, joined_processes, process_rank

SCALES, BS, RATE = (16, 32), 16, 0.01
# 80 images make short batches, and ranks without a share of one, where none are left out
CASES = {
    "all": {"views": "all", "drop_last": True},
    "native": {"views": "native", "drop_last": False},
    "frozen": {"views": "all", "drop_last": True, "max_bad": 0.5},
    "batch-norm": {"views": "all", "drop_last": True},
    "killed": {"views": "all", "drop_last": True},
    "ensemble": {"views": "down", "drop_last": False},
    "san": {"views": "all", "drop_last": True},
    "aligned": {"views": "all", "drop_last": True},
}
METHODS = {"ensemble": "rsnet", "san": "san"}  # msun elsewhere


def without_batch_norm(model):
    """Batch norm sees each process's images alone; here nothing may depend on who sees which."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, child.num_features))


def learner(case, rank, world):
    set_seed(3)
    dls = NativeImageDataLoaders.from_source(
        shapes_source(80, 41, seed=7),
        scales=SCALES,
        bs=BS // world,
        augment="none",
        num_workers=0,
        device="cpu",
        rank=rank,
        world=world,
        **CASES[case],
    )
    learn = msun_learner(
        dls,
        "thin_resnet10",
        method=METHODS.get(case, "msun"),
        pretrained=False,
        metrics=[accuracy, F1Score(average="macro")],
        opt_func=SGD,
        cbs=DistributedTraining(),
    )
    if case != "batch-norm":
        without_batch_norm(learn.model)
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))
    learn.logger = lambda row: None
    return learn


def train(case, rank, world):
    learn = learner(case, rank, world)
    if rank:  # the first process's numbers are what counts
        learn.dls.train.rng.seed(rank)
    if case == "frozen" and rank == world - 1:  # and what any of them knows
        learn.dls.train.bad.mark("an image that cannot be read", 5)
    shares = []

    def before_step(cb):
        shares.append(cb.dl.weight)
        if case == "killed" and rank == 1 and len(shares) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    learn.add_cb(Callback(before_step=before_step))
    if case == "frozen":
        learn.freeze()
        learn.fit(1, RATE)
        learn.unfreeze()
    with aligning(learn) if case == "aligned" else nullcontext():
        learn.fit(2, RATE)
    assert not isinstance(learn.model, DistributedDataParallel)
    return {
        "weights": dict(learn.model.state_dict()),
        "values": [[float(v or 0) for v in row] for row in learn.recorder.values],
        "names": list(learn.recorder.metric_names),
        "validated": [float(v) for v in learn.validate()],
        "shares": shares,
        "bad": learn.dls.train.bad.marks(),
    }


def main(folder, *cases):
    rank, world = process_rank()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with joined_processes("cpu"):
        assert agree([rank, 7 - rank]) == [world - 1, 7]
        assert gathered(rank) == list(range(world))
        for case in cases:
            torch.save(train(case, rank, world), Path(folder) / f"{case}-{rank}-{world}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
