"""Recipes: what a run does, as a checked document. TOML in, TOML out; one may rest on another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msun_fastai.errors import UserError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


VERBS = ("finetune", "linear-probe", "pretrain", "calibrate")
BASE = "base"  # the key that names the recipe on which another rests
PAPER = "paper"  # the preset whose training is the paper's as well
TRAINED = "trained"  # in a preset: what is for trained weights that are trained on


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are of the type they say."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataSection(Section):
    """Where the images are and what happens to them on the way in.

    *_column: of a CSV, the usual names where empty. valid_fraction: what is held out where nothing
    else is. seed: what draws the parts that the data do not have, and the images that `limit`
    takes; the training's own by default. classes: the first so many classes alone. carve: the share
    of the training part that is held out to choose on, whatever else there is. stream: read the
    dataset from shards as they come, from a local copy in the hub's layout, or from the hub itself:
    there from `hub_id` at `revision` if they are given. cache: GiB of decoded images kept in
    memory, see `NativeDL`. on_bad_image: `skip` up to `max_bad` of the training images, or `stop`.
    """

    dataset: str | None = None
    path: str | None = None
    root: str | None = None
    path_column: str = ""
    label_column: str = ""
    split_column: str = ""
    valid_fraction: float = Field(0.2, gt=0, lt=1)
    seed: int | None = Field(None, ge=0)
    classes: int | None = Field(None, ge=2)
    carve: float | None = Field(None, gt=0, lt=1)
    stream: bool = False
    hub_id: str = ""
    revision: str = ""
    limit: int | None = Field(None, ge=1)
    augment: str = "light"
    resize: str = "squish"
    workers: int = Field(2, ge=0)
    cache: float | None = Field(None, ge=0, allow_inf_nan=False)
    on_bad_image: str = "skip"
    max_bad: float = Field(0.01, ge=0, le=1)


class ModelSection(Section):
    """The network: see `NetConfig`. What is not set is the method's own.

    weights: instead of the published ones, those in a state-dict file, or of the trained network in
    a run folder or model folder that has this backbone and one scale. start: a run folder or model
    folder whose trained network is the one to start from, with its own backbone, method and scales,
    instead of a new one.
    """

    arch: str = "resnet50"
    method: str = "msun"
    scales: list[int] = [32, 128, 224]
    blocks: int = Field(1, ge=0)
    alignment: str | None = None
    grids: list[int] | None = None
    norm: str | None = None
    routing: str = "nearest"
    meta_hidden: int = Field(0, ge=0)
    pretrained: bool = True
    weights: str | None = None
    start: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the network starts from trained weights, whosever."""
        return self.pretrained or self.weights is not None or self.start is not None


class ConsistencySection(Section):
    """What ties the views together: see `Consistency`. What is not set is the method's own.

    kind: `si`, `sd`, `ensemble` or `none`. weight: of that term; by default 0.1 for `si` and 1 for
    the others. floor: the least that it counts for. distance: of `si`, `mse`,
    `euclidean` or `cosine`. ce_weight: of the sum of the cross-entropies. detach: of `si` alone,
    the features of the larger scale of each pair are constants, so that it teaches the smaller one.
    """

    kind: str | None = None
    weight: float | None = Field(None, ge=0)
    floor: float = Field(0.0, ge=0)
    distance: str = "mse"
    ce_weight: float = Field(1.0, ge=0)
    detach: bool = False


class TrainSection(Section):
    """How the network is trained.

    align: epochs before all others, without labels, in which the subnets of the smaller scales
    alone are trained, by one cycle of `lr`, to give what the canonical one gives (as measured by
    `consistency.distance`); for msun from trained weights. epochs: those that follow.

    schedule: `one_cycle`, fastai's (from pretrained weights its `fine_tune`: one epoch on the head
    alone, then `epochs` on everything), or one that trains everything for `epochs`, of which
    `warmup` rise to the highest rate `lr`: `cosine`, the paper's, or `step`, which divides the rate
    by ten at each of the `milestones`, in epochs. lowest: the share of `lr` at which the warm-up
    starts and the cosine ends. optimizer: `adam`, or `sgd` with `momentum`.

    views: policy `all`, `native` or `down`, which views a batch gives. reduced: the share, from 0
    to 1, of the views above the smallest scale that are first reduced to a size between the scales,
    drawn for each batch and view from those that routing sends to its scale, and brought up again.

    precision: `full`, `bf16` or `fp16`. channels_last: the memory layout; by default where mixed
    precision is used on CUDA. compile: through `torch.compile`. ema: decay of a running average of
    the weights, which is then what is validated and kept. clip: the largest norm of the gradient.
    patience: stop after so many epochs without a better validation loss. keep: the `last` weights,
    or the `best` by validation loss. save_minutes: how often a checkpoint is written, besides after
    every epoch. log: `tensorboard` or `wandb`. report: write `report.html` at the end.
    """

    align: int = Field(0, ge=0)
    epochs: int = Field(5, ge=1)
    bs: int = Field(64, ge=1)
    lr: float = Field(2e-3, gt=0)
    wd: float | None = Field(None, ge=0)
    optimizer: str = "adam"
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: str = "one_cycle"
    warmup: float = Field(5.0, ge=0)
    lowest: float = Field(0.01, ge=0, lt=1)
    milestones: list[float] = []
    views: str = "all"
    reduced: float = Field(0.0, ge=0, le=1)
    seed: int = Field(42, ge=0)
    device: str | None = None
    precision: str = "full"
    channels_last: bool | None = None
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)
    clip: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    patience: int | None = Field(None, ge=1)
    keep: str = "last"
    save_minutes: float = Field(10.0, gt=0)
    log: str | None = None
    report: bool = True


class ProbeSection(Section):
    """How a linear probe is trained.

    protocol: `cached`, a regularised classifier on features that are taken once, its strength (C,
    the inverse of the L2 penalty) chosen of `strengths` on validation data; or `sgd`, as `train`
    says.
    """

    protocol: str = "cached"
    strengths: list[float] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


class CalibrationSection(Section):
    """What a trained network is fitted to, `model.start` being its parent: images of one `size` in
    pixels alone, or of several `sizes`, each with batch norms of its own.

    what: `bn`, the statistics of its batch norms, or, with one size, `classifier+bn`.
    """

    size: int | None = Field(None, ge=1)
    sizes: list[int] | None = None
    what: str = "bn"

    @property
    def fitted_to(self) -> list[int]:
        """The size or the sizes; none of a recipe that calibrates nothing."""
        return self.sizes or ([] if self.size is None else [self.size])


class Recipe(Section):
    """A run, complete. `baseline` names a method that is trained the same way to compare with.

    verb: what it is a recipe for: `pretrain`, `finetune`, `linear-probe` or `calibrate`.
    """

    verb: str = "finetune"
    baseline: str | None = None
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    consistency: ConsistencySection = ConsistencySection()
    train: TrainSection = TrainSection()
    probe: ProbeSection = ProbeSection()
    calibration: CalibrationSection = CalibrationSection()

    def with_values(self, values: dict[str, Any], where: str) -> Recipe:
        """This recipe with dotted keys such as `train.lr` set.

        Raises `UserError` for a key or a value that a recipe does not have; it names `where`.
        """
        data = self.model_dump(exclude_unset=True)
        for key, value in values.items():
            *path, last = key.split(".")
            section: Any = data
            for name in path:
                section = section.setdefault(name, {})
                if not isinstance(section, dict):
                    raise UserError(f"{where}: {key}: {name} is a value, not a section")
            section[last] = value
        return _checked(data, where)

    def unset(self) -> list[str]:
        """The dotted keys that have no value."""
        found = []
        for name, value in self.model_dump().items():
            inner = value.items() if isinstance(value, dict) else ()
            found += [f"{name}.{key}" for key, v in inner if v is None]
            found += [name] if value is None else []
        return found

    def to_toml(self) -> str:
        """The recipe as TOML; values that are not set are left out, as TOML has no null."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def default_recipe(verb: str, preset: str | None = None) -> Recipe:
    """What `verb` does without a recipe: the paper's settings, but for `finetune`, where they are
    fastai's unless the preset is the paper's."""
    if verb == "finetune" and preset != PAPER:
        return Recipe()
    return load_recipe(str(recipe_folder() / "shared" / f"{verb}.toml"))


def recipe_folder() -> Path:
    """Where the shipped recipes are: in the package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(p for p in (package / "recipes", package.parent / "recipes") if p.is_dir())


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(recipe_folder().glob("*.toml"))}


def presets() -> dict[str, Path]:
    """The choices for MSUN that come with the package, by name."""
    return {file.stem: file for file in sorted((recipe_folder() / "presets").glob("*.toml"))}


def with_preset(recipe: Recipe, name: str) -> Recipe:
    """`recipe` with the method and all that belongs to it as the preset `name` has it.

    Data, backbone, scales and training stay the recipe's. What the preset has for trained weights
    comes where the recipe has some and trains more than a classifier; where an image gives one view
    alone, no term between views does. Raises `UserError`.
    """
    file = presets().get(name)
    if file is None:
        raise UserError(f"preset {name!r} is unknown; {did_you_mean(name, presets())}")
    model = recipe.model
    if model.start is not None:
        raise UserError(f"preset {name}: {model.start} brings its own network; leave one out")
    if len(model.scales) == 1:
        raise UserError(f"preset {name}: it takes two scales or more, not {model.scales[0]} alone")
    values = _read(file)
    if recipe.train.views == "native":
        del values["consistency"]["kind"]
    trained = values.pop(TRAINED, {})
    if model.is_trained and recipe.verb in ("pretrain", "finetune"):
        values = _merged(values, trained)
    data = recipe.model_dump(exclude_unset=True)
    # of another alignment, of another method, and of another term
    for section, keys in (("model", ("grids", "meta_hidden")), ("consistency", ("kind",))):
        for key in keys:
            data.get(section, {}).pop(key, None)
    return _checked(_merged(data, values), f"preset {name}")


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or one from a TOML file. Raises `UserError`."""
    file = Path(name) if name.endswith(".toml") else shipped_recipes().get(name)
    if file is None:
        raise UserError(f"recipe {name!r} is unknown; {did_you_mean(name, shipped_recipes())}")
    return _checked(_read(file), str(file))


def _read(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe says, on top of what the one that it rests on says."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        whose = f"{above[-1]}: base " if above else "recipe "
        raise UserError(f"{whose}{file}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"recipe {file}: not TOML that can be read ({error})") from error
    base = data.pop(BASE, None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"{file}: base = {base!r}: name a recipe's file")
    below = _base_file(file, base)
    if below in (*above, file.resolve()):
        raise UserError(f"{file}: base {base}: rests on itself")
    return _merged(_read(below, (*above, file.resolve())), data)


def _base_file(file: Path, base: str) -> Path:
    """A path from `file`, or, without `.toml`, a shipped recipe or what those rest on."""
    if base.endswith(".toml"):
        return (file.parent / base).resolve()
    shared = {f.stem: f for f in (recipe_folder() / "shared").glob("*.toml")}
    known = {**shipped_recipes(), **shared}
    if base not in known:
        raise UserError(f"{file}: base {base!r} is unknown; {did_you_mean(base, known)}")
    return known[base].resolve()


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        nested = isinstance(value, dict) and isinstance(inner, dict)
        both[key] = _merged(inner, value) if nested else value  # type: ignore[arg-type]
    return both


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` from the command line; the value as TOML has it, or else as text.

    >>> parse_assignment("train.lr=1e-3")
    ('train.lr', 0.001)
    """
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UserError(f"--set {text}: write key=value, such as train.lr=0.001")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _checked(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] != "extra_forbidden":
            raise UserError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from None
        section: Any = Recipe
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        prefix = "".join(f"{part}." for part in first["loc"][:-1])
        near = did_you_mean(str(first["loc"][-1]), section.model_fields)
        for word in ("did you mean ", " or "):
            near = near.replace(word, word + prefix)
        raise UserError(f"{where}: unknown key {key!r}; {near}") from None
