"""Views made on the device look like images decoded at that size."""

import numpy as np
import torch
from PIL import Image

from msun_fastai.data.resize import as_pixels, load_fitted
from msun_fastai.views import draw_side, make_views, rescale_view, resize_batch


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


def test_views_of_given_sizes_are_reduced_first_and_the_others_are_not():
    x = torch.rand(2, 3, 64, 64)
    made = make_views(x, (16, 32, 64), (16, 27, 50))
    plain = make_views(x, (16, 32, 64))
    assert torch.equal(made[0], plain[0])
    for view, size in zip(made[1:], (27, 50)):
        assert torch.equal(view, resize_batch(resize_batch(x, size), view.shape[-1]))
    assert [v.shape for v in made] == [v.shape for v in plain]


def test_drawn_sides_are_all_of_them_alike_at_their_share():
    torch.manual_seed(0)
    sides, n = range(25, 33), 4000
    drawn = [draw_side(32, sides, 0.5) for _ in range(n)]
    expected = dict.fromkeys(range(25, 32), n / 16) | {32: n / 2 + n / 16}
    for side, count in expected.items():
        assert abs(drawn.count(side) - count) < 4 * count**0.5
    assert set(drawn) == set(expected)
    assert {draw_side(32, range(25, 27), 1.0) for _ in range(50)} == {25, 26}


def test_nothing_is_drawn_where_there_is_no_choice():
    state = torch.get_rng_state()
    assert draw_side(16, range(16, 17), 1.0) == 16
    assert torch.equal(torch.get_rng_state(), state)
    assert draw_side(32, range(27, 28), 1.0) == 27
    assert not torch.equal(torch.get_rng_state(), state)


def test_resize_rule_squishes_the_whole_image():
    left_black = Image.new("RGB", (100, 20), "white")
    left_black.paste("black", (0, 0, 50, 20))
    small = load_fitted(left_black, 10)[0]
    assert small.shape == (10, 10)
    assert (small[:, :4] == 0).all()
    assert (small[:, 6:] == 255).all()
