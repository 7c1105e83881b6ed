"""A recipe's smoke run: the same method on a handful of images, to see that it runs at all."""

from __future__ import annotations

from msun_fastai.recipe import DataSection, Recipe
from msun_fastai.schedules import milestones_within

DATASET = "shapes"  # drawn by the code: no files, sides of 16 to 256 pixels
IMAGES = 16  # in each part
EPOCHS = 2
WARMUP = 0.5
BS = 8
LR = 2e-3  # at most: the loss has to stay finite in a network without batch norm, too
LARGEST = 64  # a recipe whose scales are no larger keeps them
SMALLEST, CANONICAL = 32, 80  # the ends of the others; Inception's convolutions need 75


def smoke_recipe(recipe: Recipe) -> Recipe:
    """`recipe` shrunk to a run of well under two minutes on two CPU cores, in need of no files.

    What is tried stays: verb, backbone, method and baseline, number of scales, consistency, views,
    optimizer, schedule, a probe's protocol. Its figures mean nothing.
    """
    limit = min(recipe.data.limit or IMAGES, IMAGES)
    train = recipe.train
    milestones = milestones_within(train.milestones, train.epochs, EPOCHS)
    warmup = min(train.warmup, WARMUP)
    if milestones:  # the first of which it has to stay below
        warmup = min(warmup, train.warmup * EPOCHS / train.epochs)
    values = {
        **{f"data.{key}": value for key, value in DataSection().model_dump().items()},
        "data.dataset": DATASET,
        "data.limit": limit,
        "data.workers": 0,
        "data.augment": recipe.data.augment,
        "data.resize": recipe.data.resize,
        "data.on_bad_image": recipe.data.on_bad_image,
        "model.scales": smoke_scales(recipe.model.scales),
        "model.grids": None,
        "model.pretrained": False,
        "model.weights": None,
        "model.start": None,
        "train.align": 0,  # random weights give nothing to align with
        "train.epochs": EPOCHS,
        "train.warmup": warmup,
        "train.milestones": milestones,
        "train.bs": BS,
        "train.lr": min(train.lr, LR),
        "train.precision": "full",
        "train.compile": False,
        "train.patience": None,
        "train.log": None,
    }
    return recipe.with_values(values, "smoke")


def smoke_scales(scales: list[int]) -> list[int]:
    """As many scales as `scales`, small ones: themselves, or else evenly from 32 to 80 pixels.

    >>> smoke_scales([32, 128, 224])
    [32, 56, 80]
    """
    if not scales or scales[-1] <= LARGEST:
        return list(scales)
    steps = max(len(scales) - 1, 1)
    span = CANONICAL - SMALLEST
    return [CANONICAL - round(span * i / steps) for i in reversed(range(len(scales)))]
