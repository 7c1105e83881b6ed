"""`NativeImage`: an image that remembers its native size, and the transform that opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image
from torch import Tensor

from msun_fastai.data.images import load_image
from msun_fastai.data.samples import Sample


class NativeImage(PILImage):
    """An upright RGB image that remembers its native size, from any input form."""

    @classmethod
    # the union in the signature is what fastai dispatches on when it is given items to predict
    def create(
        cls, fn: Sample | Path | str | Tensor | np.ndarray | bytes | Image.Image, **kwargs: Any
    ) -> NativeImage:
        """Decode a path, bytes, a Pillow image, an array, a tensor or a `Sample`.

        An array or a tensor is (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels; see
        `msun_fastai.data.images.open_image` for modes and types. Raises `ImageError`.
        """
        if isinstance(fn, NativeImage):
            return fn
        image = cls(load_image(fn.image if isinstance(fn, Sample) else fn))
        # in `info`, which Pillow carries through resizing, copying and pickling
        image.info["native_size"] = min(image.size)
        return image

    @property
    def native_size(self) -> int:
        """The shorter side in pixels of the image as it was decoded."""
        return self.info.get("native_size", min(self.size))


class OpenImage(Transform):
    """fastai's item transform to `NativeImage`, from whatever `NativeImage.create` takes."""

    def __init__(self) -> None:
        super().__init__(
            NativeImage.create
        )  # its signature is what items to predict are matched by


def sample_label(item: Sample | Path | str) -> str:
    """The label of a `Sample`, or the name of the folder that a path is in.

    At module level, so that an exported Learner can name it.
    """
    return item.label if isinstance(item, Sample) else Path(item).parent.name
