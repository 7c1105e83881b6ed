"""One image through a model, explained: its size, its subnet, the cost, the answers, where the
network looks; at its own size or rescaled."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from msun_fastai.analysis.gradcam import grad_cam
from msun_fastai.data.images import OpenedImage, open_image
from msun_fastai.data.resize import as_pixels, fitted
from msun_fastai.evaluate import scale_macs
from msun_fastai.models.meta import evaluating
from msun_fastai.models.saving import SavedModel
from msun_fastai.predict import normalize
from msun_fastai.sized import subnet_for

TOP = 5
SHOWN = 256  # pixels of the pictures' sides, at least
HEAT = 0.5  # share of the map's colour where it is highest
LARGEST = 1024  # pixels: what a shorter side can be rescaled to


@dataclass(frozen=True)
class Explanation:
    """What a model makes of an image.

    width, height: as it was given. native_size: its shorter side. size: the shorter side at which
    it was asked, the native one unless it was rescaled. scale: of the subnet that answered. macs,
    canonical_macs: multiply-accumulates in that subnet and in the canonical one. top: classes and
    probabilities, best first. seen, looked: PNG files, the image as the subnet sees it and with
    Grad-CAM of the best class on it.
    """

    width: int
    height: int
    native_size: int
    size: int
    scale: int
    macs: int
    canonical_macs: int
    top: list[tuple[str, float]]
    seen: bytes
    looked: bytes

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them, pictures as data addresses."""
        found = asdict(self)
        found["top"] = [{"label": label, "probability": p} for label, p in self.top]
        for name in ("seen", "looked"):
            found[name] = "data:image/png;base64," + b64encode(found[name]).decode()
        return found


class Explainer:
    """Explains images by the model `saved`; its costs are counted once."""

    def __init__(self, saved: SavedModel):
        self.saved = saved
        self.macs = scale_macs(saved.model)

    def explain(self, source: Any, size: int | None = None, top: int = TOP) -> Explanation:
        """What the model makes of an image of any form that prediction takes.

        size: rescale it first, so that its shorter side is that. Without it the answer is that of
        `Predictor`. Raises `ImageError`.
        """
        model = self.saved.model
        with open_image(source) as image:
            (width, height), native = image.size, image.native_size
            at = native if size is None else max(1, min(size, LARGEST))
            scale = model.route(at)
            if at == native:
                view = fitted(image, scale, self.saved.preprocessing.resize)
            else:
                with open_image(rescaled(image, at)) as smaller:
                    view = fitted(smaller, scale, self.saved.preprocessing.resize)
        sized = subnet_for(model, at, scale)
        with evaluating(model):
            x = normalize(view[None].to(next(model.parameters()).device), self.saved.preprocessing)
            cam = grad_cam(sized.body, sized.head, x)
        best = cam.logits[0].float().softmax(0).topk(min(top, len(self.saved.classes)))
        answers = [
            (self.saved.classes[code], share)
            for code, share in zip(best.indices.tolist(), best.values.tolist())
        ]
        pixels = as_pixels(view)
        return Explanation(
            *(width, height, native, at, scale, self.macs[scale]),
            self.macs[model.entry_scales[-1]],
            answers,
            as_png(pixels),
            as_png(heated(pixels, cam.maps[0])),
        )


def rescaled(image: OpenedImage, size: int) -> np.ndarray:
    """The pixels (h, w, 3) of an image whose shorter side is made `size`, antialiased."""
    width, height = image.size
    share = size / image.native_size
    wanted = max(1, round(width * share)), max(1, round(height * share))
    whole = Image.fromarray(image.pixels())
    return np.asarray(whole.resize(wanted, Image.Resampling.BILINEAR))


def heated(pixels: np.ndarray, cam: Tensor) -> np.ndarray:
    """`pixels` (h, w, 3) with the map `cam` on them: the more a place counts the redder it is."""
    from matplotlib import colormaps

    h, w = pixels.shape[:2]
    heat = interpolate(cam[None, None].float().cpu(), (h, w), mode="bilinear", align_corners=False)
    share = torch.nan_to_num(heat[0, 0] / heat.max().clamp_min(1e-12)).numpy()[..., None]
    colour = colormaps["inferno"](share[..., 0])[..., :3] * 255
    mixed = pixels * (1 - HEAT * share) + colour * HEAT * share
    return mixed.round().clip(0, 255).astype(np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    """`pixels` as a PNG file, small ones enlarged without smoothing."""
    image = Image.fromarray(pixels)
    factor = -(-SHOWN // min(image.size))
    if factor > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.NEAREST)
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()
