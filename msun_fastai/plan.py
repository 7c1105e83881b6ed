"""Before a run: what it would do and cost (`--dry-run`), and a learning rate (`--find-lr`)."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from fastai.callback.schedule import LRFinder, valley
from fastai.callback.training import BnFreeze
from fastai.learner import Learner
from rich.console import Console
from torch import Tensor, nn

from msun_fastai.callbacks.alignment import aligning
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.choices import check_choices
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.files import write_rows
from msun_fastai.flops import count_macs, count_params
from msun_fastai.plots import draw
from msun_fastai.processes import process_rank
from msun_fastai.recipe import Recipe
from msun_fastai.run import Prepared, prepare
from msun_fastai.runfolder import is_unfinished, new_run_folder
from msun_fastai.scales import view_scales
from msun_fastai.training import HEAD, fits

TRIAL = 4  # images in the steps that are timed on a CPU,
TRIAL_SIDE = 224  # of this side; of smaller ones as many pixels
TIMED = 2  # steps, after one that warms up
FORWARD_AND_BACKWARD = 3  # multiples of the forward pass that a step of training costs
RATES = 100  # steps of a search for the learning rate
SHOWN = 1.5  # times the first loss: what is above is not drawn
LEAST = 8  # of them that have to be there for a curve


def plan(recipe: Recipe, console: Console) -> dict[str, Any]:
    """What a run of `recipe` would be, found by making its Learner and trying a few steps.

    Data are looked at as a run does, and nothing is written. The estimates are of the training
    alone: loading the images, validation and the test at the end come on top. `lines` has it as
    text. Raises `UserError`.
    """
    _refuse_processes("--dry-run")
    check_choices(recipe, None)
    ready = prepare(recipe, console)
    recipe, learn, train = ready.recipe, ready.learn, ready.recipe.train
    net = learn.model
    cached = recipe.verb == "linear-probe" and recipe.probe.protocol == "cached"
    epochs = 1 if cached else sum(fit.epochs for fit in fits(recipe, learn))
    sides = batches_by_side(learn)
    macs = {s: count_macs(net.at_scale(i), s) for i, s in enumerate(net.entry_scales)}
    seconds, activations = 0.0, 0.0
    for side, batches in sides.items():
        took, held = (try_forward if cached else try_steps)(ready, side)
        seconds += batches * (epochs - train.align) * took
        activations = max(activations, held)
        if train.align:
            seconds += batches * train.align * try_steps(ready, side, align=True)[0]
    weights = count_params(net)
    found = {
        "recipe": recipe.model_dump(),
        "data": {
            part: len(getattr(ready.found.source, part)) for part in ("train", "valid", "test")
        },
        "bad_images": len(ready.found.bad),
        "params": weights,
        "trained_params": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "macs_per_image": {str(scale): n for scale, n in macs.items()},
        "macs_per_step": {
            str(side): step_macs(macs, side, recipe, learn.dls.train.bs, cached) for side in sides
        },
        "batches": {str(side): n for side, n in sides.items()},
        "epochs": epochs,
        "memory_gib": round(memory(net, train.optimizer, activations, cached) / 2**30, 2),
        "train_seconds": round(seconds, 1),
    }
    return {**found, "lines": plan_lines(found, recipe)}


def _refuse_processes(option: str) -> None:
    if process_rank()[1] > 1:
        raise UserError(f"{option}: one process looks; start it without torchrun")


def plan_lines(found: dict[str, Any], recipe: Recipe) -> list[str]:
    """The plan as text, the recipe first."""
    batches = ", ".join(f"{n:,} of side {side}" for side, n in found["batches"].items())
    per_image = ", ".join(f"{n / 1e9:.3f} at {s}" for s, n in found["macs_per_image"].items())
    per_step = ", ".join(f"{n / 1e9:.1f} at {s}" for s, n in found["macs_per_step"].items())
    lines = [
        *recipe.to_toml().rstrip().splitlines(),
        "",
        f"parameters {found['params'] / 1e6:.2f}M",
        f"cost of an image, forward (G MACs): {per_image}",
        f"cost of a step, all views, forward and back (G MACs): {per_step}",
        f"batches in an epoch: {batches}; {found['epochs']} epochs",
        f"memory about {found['memory_gib']:.2f} GiB, besides what loading images takes",
        f"training about {timedelta(seconds=round(found['train_seconds']))} (h:mm:ss), the loading "
        "of images not counted",
    ]
    return [*lines, "dry run: nothing was trained or written"]


def batches_by_side(learn: Learner) -> dict[int, int]:
    """How many batches of each side an epoch has."""
    dl = learn.dls.train
    if dl.single_side is not None or not hasattr(dl, "scale_counts") or dl.n is None:
        return {dl.single_side or dl.scales[-1]: len(dl)}
    counts = {side: n for side, n in dl.scale_counts().items() if n}
    cut = math.floor if dl.drop_last else math.ceil
    return {side: max(1, cut(n / dl.bs)) for side, n in counts.items()}


def step_macs(macs: dict[int, int], side: int, recipe: Recipe, bs: int, cached: bool) -> int:
    """Multiply-accumulates of one step with a batch of `side`."""
    if cached:
        return bs * macs[side]
    random_sizes = recipe.model.method == "mst"
    views = tuple(macs) if random_sizes else view_scales(side, tuple(macs), recipe.train.views)
    both = 2 if random_sizes and recipe.consistency.kind != "none" else 1
    body = 1 if recipe.verb == "linear-probe" else FORWARD_AND_BACKWARD
    return body * bs * both * sum(macs[scale] for scale in views)


def memory(net: nn.Module, optimizer: str, activations: float, cached: bool) -> float:
    """Bytes for weights, gradients, the optimizer's state, and what is kept for the way back."""
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    trained = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    states = 0 if cached else {"sgd": 1, "adam": 2}[optimizer]
    return weights + (0 if cached else 1 + states) * trained + activations


def trial_size(device: torch.device, bs: int, side: int) -> int:
    """Images in a step that is tried: the batch on an accelerator, a part of it on a CPU.

    What a step does to the weights costs the same whatever the batch is. With few small images it
    would be most of the time, and multiplied up as if each image brought it.
    """
    if device.type != "cpu":
        return bs
    return min(bs, max(TRIAL, TRIAL * TRIAL_SIDE**2 // side**2))


def try_steps(ready: Prepared, side: int, align: bool = False) -> tuple[float, float]:
    """Seconds of a training step with a batch of `side`, and the bytes kept for its way back.

    Measured on random images, a part of the batch on a CPU, and multiplied up to it. align: of a
    step that aligns the subnets.
    """
    learn = ready.learn
    n = trial_size(learn.dls.device, learn.dls.train.bs, side)
    with training_step(ready, side, n, align) as step:
        with kept_for_backward(learn.model) as held:
            step()
        took = _timed(step, learn.dls.device)
    factor = learn.dls.train.bs / n
    return took * factor, held() * factor


@contextmanager
def training_step(
    ready: Prepared, side: int, n: int, align: bool = False
) -> Iterator[Callable[[], None]]:
    """The step that the run trains by, or aligns its subnets by (`align`), to be called again and
    again: on one batch of `n` random images of `side`, with its views, its terms, the way back and
    the optimizer's step."""
    recipe, learn = ready.recipe, ready.learn
    device = learn.dls.device
    batch = (
        torch.randn(n, 3, side, side, device=device),
        torch.arange(n, device=device) % len(learn.dls.vocab),
    )
    probe = recipe.verb == "linear-probe"
    alone = aligning(learn, recipe.consistency.distance) if align else nullcontext()
    step = TrainingStep(recipe.train.precision, print)
    with learn.added_cbs([step]), learn.no_logging(), alone:
        if not align:
            learn.create_opt()
            (learn.freeze if probe else learn.unfreeze)()
        learn.n_epoch, learn.n_iter, learn.dl = 1, 1, learn.dls.train
        for event in ("before_fit", "before_epoch", "before_train"):
            learn(event)
        yield lambda: learn.one_batch(0, batch)
        learn("after_fit")


def try_forward(ready: Prepared, side: int) -> tuple[float, float]:
    """Seconds of a forward pass with a batch of `side`, and about the bytes it needs."""
    learn = ready.learn
    device, net = learn.dls.device, learn.model.eval()
    n = trial_size(device, learn.dls.train.bs, side)
    x = torch.randn(n, 3, side, side, device=device)
    with torch.no_grad():
        net(x)
        took = _timed(lambda: net(x), device)
    factor = learn.dls.train.bs / n
    return took * factor, x.numel() * x.element_size() * factor


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(TIMED):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def kept_for_backward(net: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes that autograd keeps for the way back, parameters aside, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(sizes.values())


def find_rate(
    recipe: Recipe, console: Console, run_dir: Path | str | None = None
) -> dict[str, Any]:
    """A mock training whose rate rises with every step, and the rate that its losses suggest.

    fastai's finder (Smith 2015) and its `valley` suggestion. Where the head is trained first, it
    is the rate of the head, as `fine_tune` takes it. Writes `lr.csv` and `lr.png`.
    Raises `UserError`.
    """
    if recipe.verb == "linear-probe" and recipe.probe.protocol == "cached":
        raise UserError("--find-lr: a cached probe has no learning rate; try --protocol sgd")
    _refuse_processes("--find-lr")
    check_choices(recipe, None)
    if run_dir is not None and is_unfinished(Path(run_dir)):
        raise UserError(f"run folder {run_dir}: has a run in it; name another")
    ready = prepare(recipe, console)
    learn = ready.learn
    probe = recipe.verb == "linear-probe"
    if not probe and all(fit.part != HEAD for fit in fits(ready.recipe, learn)):
        learn.unfreeze()
    with tempfile.TemporaryDirectory() as scratch:
        learn.path = Path(scratch)  # fastai keeps the weights there to put them back
        cbs = [LRFinder(num_it=RATES), TrainingStep(ready.recipe.train.precision)]
        cbs += [BnFreeze()] if probe else []
        # a loss that is not finite ends the search, as one that rises does
        with learn.no_logging(), learn.no_bar(), suppress(TrainingError):
            learn.fit(RATES // len(learn.dls.train) + 1, cbs=cbs)
    rates = [float(rate) for rate in learn.recorder.lrs]
    losses = [float(loss) for loss in learn.recorder.losses]
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    rates, losses = rates[:finite], losses[:finite]
    if len(rates) < LEAST:
        raise UserError(
            f"--find-lr: the loss left all bounds after {len(rates)} steps, too few to suggest a "
            "rate; look at the data, or give a --lr"
        )
    first = min(len(rates) // 10, RATES // 10)
    suggested, _ = valley(rates[first:], losses[first:], RATES)
    folder = new_run_folder(f"{ready.found.source.name}-find-lr", run_dir)
    write_rows(folder / "lr.csv", [{"lr": r, "loss": v} for r, v in zip(rates, losses)])
    shown = [i for i, loss in enumerate(losses) if loss <= SHOWN * losses[0]]
    curve = ([rates[i] for i in shown], [losses[i] for i in shown])
    file = folder / "lr.png"
    draw({"smoothed loss": curve}, "learning rate", "loss", file, log_x=True, mark=suggested)
    lines = [
        f"suggested: --lr {suggested:.2g}",
        f"losses by rate: {folder / 'lr.png'}, {folder / 'lr.csv'}; nothing was trained",
    ]
    return {"lr": suggested, "folder": str(folder), "lines": lines}
