"""The model card of a run: what a stranger has to know of a model before using it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msun_fastai import __version__
from msun_fastai.errors import UserError
from msun_fastai.flops import count_params
from msun_fastai.models.saving import SavedModel
from msun_fastai.recipe import Recipe, load_recipe
from msun_fastai.runfolder import FINISHED, RECIPE

PICTURE = "accuracy.png"  # of a run's report
TAGS = ("image-classification", "fastai", "multi-scale", "msun")
# where things lie on the machine that trained: nobody else's business
LOCAL = ("data.root", "train.device")
NAMES = ("data.path", "model.start", "model.weights")  # of these the last part is told
FITTED = {"bn": "batch norms", "classifier+bn": "batch norms and classifier"}
NAMED = 20  # classes that a card names
INTENDED = (
    "Classification of images like those that it was trained on, into the classes above, at any "
    "input size: each image is resized to {where}. What it does on other kinds of images was not "
    "measured, and nothing here says that its errors are spread evenly over classes or groups of "
    "people. It answers with one of its classes whatever it is shown."
)


def model_card(run: Path | str, saved: SavedModel, name: str, license: str | None = None) -> str:
    """The card (Markdown behind a YAML head) of the repository `name` with the model of `run`.

    Its figures are those of the run's `metrics.json`; of a model folder without a run the card has
    none. The recipe is without the paths of the machine. Raises `UserError`.
    """
    folder = Path(run)
    if not (folder / FINISHED).is_file():
        return plain_card(saved, name, license)
    try:
        metrics = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
        recipe = load_recipe(str(folder / RECIPE))
        body = [
            *_head(saved, license, metrics),
            *_title(saved, name),
            *_data(metrics, recipe),
            *_accuracy(metrics, (folder / "report" / PICTURE).is_file()),
            *_use(saved, license),
            *_loading(name),
            "## Recipe",
            "",
            f"`msun-fastai {recipe.verb} --recipe recipe.toml`, msun-fastai {__version__}:",
            "",
            "```toml",
            public(recipe).to_toml().strip(),
            "```",
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run {folder}: no card can be made of it ({error})") from error
    return "\n".join(body) + "\n"


def plain_card(saved: SavedModel, name: str, license: str | None = None) -> str:
    """The card of a model about whose training nothing is known here."""
    body = [
        *_head(saved, license, None),
        *_title(saved, name),
        *_use(saved, license),
        *_loading(name),
    ]
    return "\n".join(body).rstrip() + "\n"


def public(recipe: Recipe) -> Recipe:
    """`recipe` without what says where things lie on the machine: of the data, and of the network
    that it started from, their name alone."""
    values: dict[str, Any] = {}
    for key in (*LOCAL, *NAMES):
        section, field = key.split(".")
        value = getattr(getattr(recipe, section), field)
        if value is not None:
            values[key] = Path(value).name if key in NAMES else None
    return recipe.with_values(values, "card")


def _head(saved: SavedModel, license: str | None, metrics: dict[str, Any] | None) -> list[str]:
    from huggingface_hub import EvalResult, ModelCardData

    known: dict[str, Any] = {}
    if metrics is not None:
        title = f"{saved.model.config.method}-{saved.model.config.arch}"
        known = {
            "model_name": title,
            "eval_results": [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=str(metrics["data"]),
                    dataset_name=str(metrics["data"]),
                    dataset_split="test" if metrics["test_images"] else "validation",
                    metric_type="accuracy",
                    metric_name="accuracy, mean over input sizes",
                    metric_value=round(metrics["mean_accuracy"], 4),
                )
            ],
        }
    data = ModelCardData(
        library_name="msun-fastai",
        pipeline_tag="image-classification",
        tags=list(TAGS),
        license=license,
        **known,
    )
    return ["---", data.to_yaml().strip(), "---", ""]


def _title(saved: SavedModel, name: str) -> list[str]:
    config = saved.model.config
    scales = ", ".join(map(str, config.entries))
    shown = ", ".join(f"`{c}`" for c in saved.classes[:NAMED])
    more = f" and {len(saved.classes) - NAMED} more" if len(saved.classes) > NAMED else ""
    return [
        f"# {name}",
        "",
        f"An image classifier for images of any size: `{config.arch}` with the method "
        f"`{config.method}` at {scales} pixels, {count_params(saved.model) / 1e6:.2f} million "
        f"parameters, {len(saved.classes)} classes: {shown}{more}.",
        "",
    ]


def _data(metrics: dict[str, Any], recipe: Recipe) -> list[str]:
    part = "test" if metrics["test_images"] else "validation"
    done = "trained on"
    if recipe.calibration.fitted_to:  # the parent's own training is told in its card
        sizes = ", ".join(map(str, recipe.calibration.fitted_to))
        each = " each" if recipe.calibration.sizes else ""
        done = f"a trained network, its {FITTED[recipe.calibration.what]} fitted (FixRes) to{each} "
        done += f"{sizes} pixels on"
    return [
        "## Data",
        "",
        f"`{metrics['data']}`: {done} {metrics['train_images']:,} images; the figures are of "
        f"{metrics['measured_images']:,} {part} images.",
        "",
    ]


def _accuracy(metrics: dict[str, Any], picture: bool) -> list[str]:
    rows = [
        f"| {size} | {subnet} | {100 * accuracy:.1f} % | {macs / 1e9:.4g} |"
        for size, subnet, accuracy, macs in zip(
            metrics["sizes"], metrics["subnet"], metrics["accuracy"], metrics["macs"], strict=True
        )
    ]
    return [
        "## Accuracy and cost",
        "",
        *([f"![accuracy at each input size]({PICTURE})", ""] if picture else []),
        "| input size | answered at scale | accuracy | multiply-accumulates (G) |",
        "|---:|---:|---:|---:|",
        *rows,
        f"| mean | | {100 * metrics['mean_accuracy']:.1f} % | {metrics['mean_macs'] / 1e9:.4g} |",
        "",
        f"At the images' own sizes: {100 * metrics['native_accuracy']:.1f} %. One training; no "
        "figure was chosen on these images unless the recipe says so.",
        "",
    ]


def _use(saved: SavedModel, license: str | None) -> list[str]:
    told = license or (
        "not stated. The weights depend on the data that they were trained on, whose terms hold; "
        "the software is under Apache-2.0."
    )
    sides = saved.model.entry_scales
    where = "the nearest of the scales" if len(sides) > 1 else f"{sides[0]} pixels"
    if saved.model.config.routing != "nearest":
        where = f"a scale by the rule {saved.model.config.routing}"
    return ["## Intended use", "", INTENDED.format(where=where), "", "## Licence", "", told, ""]


def _loading(name: str) -> list[str]:
    return [
        "## How to load it",
        "",
        "```python",
        "from msun_fastai.hub import MSUN",
        "",
        f'model = MSUN.from_pretrained("{name}")',
        'print(model.predict("photo.jpg").label)',
        "```",
        "",
        "The weights are safetensors; loading them runs no code.",
        "",
    ]
