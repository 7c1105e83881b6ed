"""Scales, routing and views policies against tables made by hand."""

import pytest

from msun_fastai.errors import UserError
from msun_fastai.scales import (
    SCALE_SETS,
    check_scales,
    parse_scales,
    parse_sizes,
    route,
    sides_between,
    sweep_sizes,
    target_scale,
    thresholds,
    view_scales,
)

SCALES = (32, 128, 224)
# size: (nearest, up); 80 and 176 lie halfway between two scales
TABLE = {
    1: (32, 32),
    32: (32, 32),
    33: (32, 128),
    79: (32, 128),
    80: (32, 128),
    81: (128, 128),
    128: (128, 128),
    129: (128, 224),
    176: (128, 224),
    177: (224, 224),
    224: (224, 224),
    4000: (224, 224),
}


@pytest.mark.parametrize(("size", "expected"), TABLE.items())
def test_routing_table(size, expected):
    assert (route(size, SCALES, "nearest"), route(size, SCALES, "up")) == expected


def test_every_scale_is_routed_to_itself():
    for rule in ("nearest", "up"):
        assert [route(s, SCALES, rule) for s in SCALES] == list(SCALES)


@pytest.mark.parametrize(
    ("rule", "middle", "large"),
    [
        ("nearest", (81, 128), (177, 224)),
        ("up", (33, 128), (129, 224)),
        ("calibrated:40,150", (41, 128), (151, 224)),
        ("calibrated:40,100", (41, 100), (101, 224)),  # 128 itself goes to the largest
        ("calibrated:127,223", (128, 128), (224, 224)),
        ("calibrated:90,90", (128, 128), (91, 224)),  # nothing goes to the middle
        ("calibrated:140,1000000", (128, 128), (224, 224)),  # what does is above it
    ],
)
def test_sides_between(rule, middle, large):
    found = sides_between(SCALES, rule)
    assert [(of[0], of[-1]) for of in found] == [(32, 32), middle, large]


@pytest.mark.parametrize("rule", ["nearest", "up", "calibrated:12,40", "calibrated:20,28"])
def test_sides_between_are_those_that_routing_sends_there(rule):
    scales = (16, 25, 64)
    for scale, sides in zip(scales[1:], sides_between(scales, rule)[1:]):
        assert list(sides) == [s for s in range(1, scale + 1) if route(s, scales, rule) == scale]
    assert [list(of) for of in sides_between((48,), "nearest")] == [[48]]


@pytest.mark.parametrize(
    ("views", "size", "target", "made"),
    [
        ("all", 40, 224, (32, 128, 224)),
        ("native", 40, 32, (32,)),
        ("native", 500, 224, (224,)),
        ("down", 40, 32, (32,)),
        ("down", 130, 128, (32, 128)),
        ("down", 500, 224, (32, 128, 224)),
    ],
)
def test_views_policies(views, size, target, made):
    assert target_scale(size, SCALES, views) == target
    assert view_scales(target, SCALES, views) == made


@pytest.mark.parametrize(
    ("scales", "says"),
    [
        ([], "none given"),
        ([64, 32], "write 32,64"),
        ([32, 32], "not ascending"),
        ([0, 32], "from 1 to 4096"),
        ([32, 9999], "from 1 to 4096"),
        ([16.5], "whole number"),
    ],
)
def test_bad_scales(scales, says):
    with pytest.raises(UserError, match=says):
        check_scales(scales)


def test_unknown_choices_name_what_is_near():
    with pytest.raises(UserError, match="did you mean nearest"):
        route(10, SCALES, "neerest")
    with pytest.raises(UserError, match="did you mean native"):
        view_scales(32, SCALES, "nativ")


def test_sweep_is_the_papers():
    assert sweep_sizes(32, 224) == tuple(range(32, 225, 16))
    assert sweep_sizes(16, 16) == (16,)


def test_scales_by_name():
    assert parse_scales("s4") == (32, 96, 160, 224)
    assert [len(SCALE_SETS[f"S{n}"]) for n in (2, 3, 4, 5)] == [2, 3, 4, 5]
    assert all(scales[-1] == 224 for scales in SCALE_SETS.values())
    assert parse_scales("16,64") == (16, 64)
    with pytest.raises(UserError, match=r"scales: S9: write whole numbers .* or S2 S3 S4 S5"):
        parse_scales("S9")


def test_sizes_as_a_range():
    assert parse_sizes("32:224:16") == sweep_sizes(32, 224)
    assert parse_sizes("64,32") == (32, 64)
    assert parse_sizes("10:30:15") == (10, 25)
    for text, says in (
        ("32:x:16", "START:STOP:STEP"),
        ("32:64:0", "START:STOP:STEP"),
        ("64:32:16", "starts above its end"),
        ("0:32:16", "sizes: 0,16,32: a side is"),
        ("1:1000000000:1", "sizes: 1,2,3,4,5,6,7,8,9,10,...: a side is"),
        ("a,b", "sizes: a,b: write whole numbers"),
    ):
        with pytest.raises(UserError, match=says):
            parse_sizes(text)


def test_thresholds_given_by_hand():
    rule = "calibrated:40,150"
    at = {1: 32, 40: 32, 41: 128, 150: 128, 151: 224, 9000: 224}
    assert {size: route(size, SCALES, rule) for size in at} == at
    assert thresholds(SCALES, rule) == (40, 150)
    assert target_scale(150, SCALES, "native", rule) == 128
    # a scale that takes nothing, and one that takes all that is left
    assert [route(s, SCALES, "calibrated:40,40") for s in (40, 41)] == [32, 224]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("calibrated", "thresholds are missing"),
        ("calibrated:", "whole numbers"),
        ("calibrated:40", "number of thresholds 1, of scales 3; 2 would fit"),
        ("calibrated:150,40", "ascending"),
        ("calibrated:-1,40", "ascending"),
        ("calibrated:a,b", "whole numbers"),
        ("nearest:40,150", "unknown value 'nearest:40,150'"),
        ("closest", "unknown value"),
    ],
)
def test_rules_that_are_none(rule, said):
    with pytest.raises(UserError, match=said):
        route(64, SCALES, rule)
