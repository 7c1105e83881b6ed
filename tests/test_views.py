"""Views made on the device look like images decoded at that size."""

import numpy as np
import torch
from PIL import Image

from msun_fastai.data.resize import as_pixels, load_fitted
from msun_fastai.views import make_views, rescale_view, resize_batch


def test_views_have_their_scales_and_the_largest_is_untouched():
    x = torch.rand(2, 3, 64, 64)
    views = make_views(x, (16, 32, 64))
    assert [v.shape[-1] for v in views] == [16, 32, 64]
    assert views[-1].data_ptr() == x.data_ptr()


def test_a_view_equals_pillows_antialiased_resize(shapes):
    image = load_fitted(shapes.train[3].image, 64)
    view = resize_batch(image[None].float(), 16)[0]
    pillow = Image.fromarray(as_pixels(image)).resize((16, 16), Image.Resampling.BILINEAR)
    decoded = torch.from_numpy(np.array(pillow)).permute(2, 0, 1).float()
    assert (view - decoded).abs().max() <= 1.5  # Pillow rounds to whole values, twice


def test_a_checkerboard_averages_out_instead_of_aliasing():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    view = resize_batch(board.float().expand(1, 3, 64, 64), 16)
    assert (view - 0.5).abs().max() < 0.1


def test_rescaled_view_keeps_the_canonical_side_and_loses_detail():
    x = torch.rand(1, 3, 64, 64)
    out = rescale_view(x, 16, 64)
    assert out.shape == x.shape
    assert out.std() < x.std() / 2
    assert torch.equal(rescale_view(x, 64, 64), x)


def test_resize_rule_squishes_the_whole_image():
    left_black = Image.new("RGB", (100, 20), "white")
    left_black.paste("black", (0, 0, 50, 20))
    small = load_fitted(left_black, 10)[0]
    assert small.shape == (10, 10)
    assert (small[:, :4] == 0).all()
    assert (small[:, 6:] == 255).all()
