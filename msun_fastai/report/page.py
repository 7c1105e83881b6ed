"""From what was measured to `report.html`: one file that shows itself, wherever it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msun_fastai import __version__
from msun_fastai.data.samples import Sample
from msun_fastai.files import write_text
from msun_fastai.models.saving import SavedModel
from msun_fastai.report.folder import recipe_sections, training_section
from msun_fastai.report.images import gradcam_section, losses_section
from msun_fastai.report.parts import Album, Section, Tested
from msun_fastai.report.sections import (
    accuracy_section,
    all_rows,
    confusion_section,
    cost_section,
    routing_section,
)
from msun_fastai.report.words import listed, percent, summary

REPORT, TEMPLATE = "report.html", "template.html"


def make_report(
    folder: Path | str,
    saved: SavedModel,
    samples: Any,
    measured: Tested,
) -> Path:
    """Write `report.html` to the run folder, and its pictures and their numbers to `report/`;
    returns the page's path.

    samples: the list of images that was measured, in the order of `measured`; what is no list, as
    a stream, leaves out the sections that show images. The same input gives the same bytes. Raises
    `UserError` where a file of the run folder is damaged.
    """
    folder, album = Path(folder), Album(folder)
    images: Sequence[Sample] | None = samples if isinstance(samples, Sequence) else None
    rows = all_rows(measured)
    found: list[Section | None] = [
        accuracy_section(measured, rows, album),
        cost_section(rows, album),
        routing_section(measured, album),
        confusion_section(measured, album),
        losses_section(measured, images, album),
        gradcam_section(measured, saved, images, album),
        training_section(folder, album),
        *recipe_sections(folder),
    ]
    sections = [section for section in found if section is not None]
    page = render(measured, summary(measured), sections)
    write_text(folder / REPORT, page)
    return folder / REPORT


def render(measured: Tested, told: str, sections: Sequence[Section]) -> str:
    """The page: everything that came from files is escaped by the template."""
    from jinja2 import Environment, StrictUndefined

    # not a PackageLoader, which would look for the template in a zip's way
    text = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    metrics = measured.metrics
    title = f"{metrics['data']}: {metrics['method']}, {metrics['arch']}"
    return environment.from_string(text).render(
        title=title,
        summary=told,
        facts=facts(measured),
        notes=notes(measured),
        sections=sections,
        version=__version__,
    )


def facts(measured: Tested) -> list[tuple[str, str]]:
    """What the run is, name by name."""
    metrics, sweep = measured.metrics, measured.sweep
    part = "test" if metrics.get("test_images") else "validation"
    found = [
        ("Data", str(metrics["data"])),
        ("Network", f"{metrics['arch']}, {sweep.params / 1e6:,.2f} million parameters"),
        ("Method", f"{metrics['method']}, {_scales(sweep.scales)}"),
        ("Classes", f"{len(sweep.classes):,}"),
        (f"Measured on ({part})", f"{len(sweep.answers.codes):,} images"),
    ]
    if "train_images" in metrics:
        found.insert(4, ("Trained on", f"{metrics['train_images']:,} images"))
    if "calibrated" in metrics:
        found.append(("Calibrated from", str(metrics["calibrated"])))
    if "train_seconds" in metrics:
        found.append(("Training took", duration(metrics["train_seconds"])))
    return found


def _scales(scales: Sequence[int]) -> str:
    return f"{'scale' if len(scales) == 1 else 'scales'} {listed(scales)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(95), duration(3700)
    ('1 min 35 s', '1 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def notes(measured: Tested) -> list[str]:
    """What a reader should be told of the images: those that could not be read, and those that are
    not there any more."""
    metrics, found = measured.metrics, []
    bad = sum((metrics.get("bad_images") or {}).values())
    if bad:
        found.append(
            f"{bad:,} {'image' if bad == 1 else 'images'} could not be read and "
            f"{'is' if bad == 1 else 'are'} left out, see bad_images.csv."
        )
    own = metrics.get("native_accuracy")
    if own is not None and abs(own - measured.routed.accuracy) > 1e-5:
        found.append(
            f"metrics.json has {percent(own)} at the images' own sizes: the network, its routing "
            f"(now {measured.routed.rule}) or the images have changed since the run."
        )
    n, before = len(measured.sweep.answers.codes), metrics.get("measured_images")
    if before is not None and before != n:
        found.append(f"metrics.json is of {before:,} images, this report of {n:,}.")
    return found
