"""A recipe checked before its data are looked at, and with what it leaves open written out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msun_fastai.data.bad import ON_BAD_IMAGE
from msun_fastai.data.resize import AUGMENTATIONS, RESIZE_RULES
from msun_fastai.devices import PRECISIONS, check_precision, pick_device
from msun_fastai.errors import UserError
from msun_fastai.fits import CALIBRATED, is_fit
from msun_fastai.labelled import run_recipe
from msun_fastai.learner import Consistency
from msun_fastai.losses import DISTANCES
from msun_fastai.models.config import FITTED_TO
from msun_fastai.models.heads import refuse_fitted
from msun_fastai.models.methods import METHODS, find_method
from msun_fastai.models.net import NetConfig
from msun_fastai.models.plain import check_plain, is_folder
from msun_fastai.models.saving import find_model_folder, folder_config, load_model_folder
from msun_fastai.probe import PROTOCOLS
from msun_fastai.processes import is_main, process_rank
from msun_fastai.recipe import VERBS, DataSection, ModelSection, Recipe
from msun_fastai.runfolder import is_unfinished
from msun_fastai.scales import VIEWS, check_choice, check_scales
from msun_fastai.schedules import OPTIMIZERS, SCHEDULES, WITH_WARMUP, check_milestones
from msun_fastai.training import KEEPS, check_log


def check_choices(recipe: Recipe, run_dir: Path | str | None) -> None:
    """Raise `UserError` for whatever is wrong with the recipe before its data are looked at."""
    model, options, kind = recipe.model, recipe.train, recipe.consistency.kind
    check_choice("verb", recipe.verb, VERBS)
    if model.start is None:
        named = model.model_dump(exclude={"pretrained", "weights", "start"})
        NetConfig(n_classes=2, **{**named, "scales": check_scales(model.scales)})
        method = find_method(model.method)
        kind = method.consistency(kind, model.scales, options.views)
        if options.reduced:
            method.reductions(model.scales, model.routing)
    else:
        find_model_folder(model.start)
    Consistency(**{**recipe.consistency.model_dump(), "kind": kind})
    check_choice("distance", recipe.consistency.distance, DISTANCES)
    check_choice("views", options.views, VIEWS)
    check_choice("augment", recipe.data.augment, AUGMENTATIONS)
    check_choice("resize", recipe.data.resize, RESIZE_RULES)
    check_choice("on_bad_image", recipe.data.on_bad_image, ON_BAD_IMAGE)
    check_choice("optimizer", options.optimizer, OPTIMIZERS)
    check_choice("schedule", options.schedule, SCHEDULES)
    check_choice("keep", options.keep, KEEPS)
    check_choice("precision", options.precision, PRECISIONS)
    check_choice("protocol", recipe.probe.protocol, PROTOCOLS)
    _check_calibration(recipe)
    if options.align:
        _check_alignment(recipe)
    if options.log is not None:
        check_log(options.log)
    if recipe.verb == "pretrain" and (model.pretrained or model.weights is not None):
        raise UserError(
            "pretrain: starts from random weights; set model.pretrained = false (--no-pretrained), "
            "or finetune"
        )
    if options.schedule in WITH_WARMUP and options.warmup >= options.epochs:
        raise UserError(
            f"train.warmup: {options.warmup:g} epochs of warm-up in a training of "
            f"{options.epochs}; give --set train.warmup={options.epochs / 10:g} or the like"
        )
    if options.reduced and is_fit(recipe):
        raise UserError("reduced: a cached probe and a calibration see no views; leave it out")
    check_milestones(options.schedule, options.milestones, options.warmup, options.epochs)
    check_precision(options.precision, pick_device(options.device))
    if process_rank()[1] > 1 and ":" in (options.device or ""):
        raise UserError(
            f"device {options.device}: each of several processes takes its own; say cuda or cpu"
        )
    if recipe.data.stream and process_rank()[1] > 1 and options.views != "all":
        raise UserError(
            f"views {options.views}: the processes' batches of a stream would not be of one scale; "
            "take views all, or a local copy"
        )
    if model.weights is not None and model.start is not None:
        raise UserError("model.start, model.weights: two networks to start from; choose one")
    if model.weights is not None:
        _check_weights(model.weights, model.arch)
    if recipe.baseline is not None:
        _check_baseline(recipe)
    if run_dir is not None and is_main():
        is_unfinished(Path(run_dir))


def _check_alignment(recipe: Recipe) -> None:
    model = recipe.model
    if recipe.verb not in ("pretrain", "finetune"):
        raise UserError(f"train.align: {recipe.verb} trains no subnets; leave it 0")
    if not model.is_trained:
        raise UserError(
            "train.align: random weights give nothing to align with; give --weights or --model, or "
            "leave it 0"
        )
    method, scales = model.method, tuple(model.scales)
    if model.start is not None:
        network = folder_config(model.start).config
        method, scales = network.method, network.entries
    find_method(method).check_aligns(scales)


def _check_weights(weights: str, arch: str) -> None:
    if is_folder(weights):
        check_plain(folder_config(weights).config, arch, f"weights {weights}")
    elif not Path(weights).is_file():
        raise UserError(f"weights {weights}: no such file or folder")


def _check_calibration(recipe: Recipe) -> None:
    options = recipe.calibration
    check_choice("what", options.what, CALIBRATED)
    if recipe.verb != "calibrate":
        if options.fitted_to:
            raise UserError(f"calibration: {recipe.verb} calibrates nothing; leave its size out")
        return
    if not options.fitted_to or recipe.model.start is None:
        raise UserError(
            "calibrate: it takes a trained network and a size; give --model and --size or --sizes"
        )
    if options.size is not None and options.sizes is not None:
        raise UserError("calibrate: --size fits to one size alone, --sizes to several; give one")
    if options.sizes is not None and options.what != "bn":
        raise UserError("what: with --sizes the batch norms are fitted; leave it bn")
    check_scales(options.fitted_to, "size" if options.sizes is None else "sizes")


def calibration_recipe(parent: str, values: dict[str, Any]) -> Recipe:
    """The recipe that calibrates the network of the run or model folder `parent` on its own data,
    with what `values` say by their dotted keys. Raises `UserError`."""
    own = run_recipe(parent)
    data = DataSection() if own is None else own.data
    recipe = Recipe(verb="calibrate", data=data, model=ModelSection(start=parent))
    if "data.dataset" in values or "data.path" in values:  # they replace its own
        recipe = recipe.with_values({"data.dataset": None, "data.path": None}, "calibrate")
    return recipe.with_values(values, "calibrate")


def _check_baseline(recipe: Recipe) -> None:
    check_choice("baseline", str(recipe.baseline), METHODS)
    if recipe.baseline == recipe.model.method:
        raise UserError(f"baseline: {recipe.baseline} is the method itself; name another")
    if recipe.model.start is not None:
        raise UserError("baseline: a trained network is of its own method; leave the baseline out")
    if process_rank()[1] > 1:
        raise UserError("baseline: in several processes train it by a run of its own")
    check_choices(baseline_recipe(recipe), None)


def baseline_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the baseline's own run, see `method_recipe`."""
    return method_recipe(recipe, str(recipe.baseline))


def method_recipe(recipe: Recipe, name: str, own: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run of the method `name`: the same, but for what is its method's own.

    Its consistency, alignment and norm are, whatever the recipe says of them, so that a run's
    resolved recipe gives the same again; `own` values, by dotted keys, come on top. What then means
    nothing to it is left out. Nothing stands beside it. Raises `UserError`.
    """
    method = find_method(name)
    values: dict[str, Any] = {"model.method": method.name, "baseline": None}
    values |= {"consistency.kind": None, "model.alignment": None, "model.norm": None}
    if not method.private_shallow:
        values["model.grids"] = None
    if not method.aligns:
        values["train.align"] = 0
    if not method.generated:
        values["model.meta_hidden"] = 0
    if len(method.entries(recipe.model.scales)) == 1:  # learnt thresholds do not fit it
        values["model.routing"] = "nearest"
    changed = recipe.with_values(values | dict(own or {}), name)
    return changed.with_values(_left_out(changed), name)


def _left_out(recipe: Recipe) -> dict[str, Any]:
    """What `check_choices` would refuse although only another method's recipe asked for it."""
    method, scales = find_method(recipe.model.method), recipe.model.scales
    values: dict[str, Any] = {}
    if recipe.consistency.detach:
        kind = method.consistency(recipe.consistency.kind, scales, recipe.train.views)
        values["consistency.detach"] = kind == "si"
    if recipe.train.reduced and len(method.entries(scales)) == 1:
        values["train.reduced"] = 0.0
    return values


def seed_of_parts(recipe: Recipe) -> int | None:
    """What draws the parts of the data: on the data of the trained network that the recipe starts
    from that network's own seed, unless the recipe has one. In other parts some images that the
    network learnt from would be measured."""
    origin = recipe.model.start or recipe.model.weights
    parent = None if origin is None else run_recipe(origin)
    if recipe.data.seed is not None or parent is None:
        return recipe.data.seed
    ours, theirs = recipe.data, parent.data
    if ours.dataset != theirs.dataset or _place(ours.path) != _place(theirs.path):
        return None
    return parent.train.seed if theirs.seed is None else theirs.seed


def _place(path: str | None) -> Path | None:
    return None if path is None else Path(path).resolve()


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with what it leaves open written out: its method's own choices, and the network
    and preprocessing of the trained model that it starts from; of one whose weights it takes, the
    resize rule, unless the recipe names one."""
    if recipe.model.start is not None:
        saved = load_model_folder(recipe.model.start)
        refuse_fitted(saved.model.config, recipe.model.start)
        network = saved.model.config.as_dict()
        for name in ("n_classes", "ensemble", *FITTED_TO):  # what data and consistency say
            network.pop(name)
        values = {f"model.{key}": value for key, value in network.items()}
        values |= {"data.resize": saved.preprocessing.resize, "model.pretrained": False}
        values["model.start"] = str(Path(recipe.model.start).resolve())  # to go on from anywhere
        values["data.seed"] = seed_of_parts(recipe)
        recipe = recipe.with_values(values, "recipe")
    elif recipe.model.weights is not None and is_folder(recipe.model.weights):
        values = {"model.weights": str(Path(recipe.model.weights).resolve())}
        values["data.seed"] = seed_of_parts(recipe)
        if "resize" not in recipe.data.model_fields_set:
            values["data.resize"] = folder_config(recipe.model.weights).preprocessing.resize
        recipe = recipe.with_values(values, "recipe")
    model, method = recipe.model, find_method(recipe.model.method)
    named = recipe.consistency.kind
    if recipe.verb == "linear-probe" and method.switched:
        named = named or "none"  # distillation would train the classifier; `si` does not reach it
    kind = method.consistency(named, model.scales, recipe.train.views)
    own = {
        "consistency.kind": kind,
        "model.alignment": model.alignment or method.alignment,
        "model.norm": model.norm or method.own_norm(model.scales),
    }
    return recipe.with_values(own, "recipe")
