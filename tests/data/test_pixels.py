import functools

import cv2
import numpy as np
import pytest
from oracles import caffe_augmentation as caffe

from multibox.config import AugmentationConfig
from multibox.data.geometry import INTERPOLATIONS, Geometry, draw_geometry, whole_image
from multibox.data.pixels import Colour, distort, draw_colour, render
from multibox.rng import stream
from multibox.structures import MEAN_RGB

SIZE = (300, 300)
EXACT = [kind for kind in INTERPOLATIONS if kind != cv2.INTER_LANCZOS4]
# x0, y0, x1, y1 inside an image of 500 x 375: one that shrinks, one that grows, one of each.
INNER = [(10, 20, 490, 370), (200, 100, 330, 190), (5, 100, 480, 230)]

OBJECTS = np.array([(0.1, 0.2, 0.5, 0.7), (0.4, 0.4, 0.9, 0.8)], np.float32)


@functools.cache
def scene(width: int = 500, height: int = 375) -> np.ndarray:
    """Waves, a disc, a box and a little noise: smooth but for some edges, like a photograph."""
    y, x = np.mgrid[:height, :width] / 100
    disc, box = (x - 2) ** 2 + (y - 1.5) ** 2 < 1, (abs(x - 3.5) < 0.6) & (abs(y - 1) < 0.5)
    planes = [
        128 + 50 * np.sin(3 * x + k) + 40 * np.cos(2.3 * y * (k + 1) - x) + 30 * disc - 40 * box
        for k in range(3)
    ]
    noisy = np.stack(planes, axis=-1) + stream(0, "scene").normal(0, 6, (height, width, 3))
    image = cv2.GaussianBlur(np.clip(noisy, 0, 255).astype(np.uint8), (3, 3), 0.8)
    image.flags.writeable = False
    return image


def unfused(image, geometry, colour, size=SIZE):
    return caffe.render(image, *geometry, None if colour is None else tuple(colour), size)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b)


@pytest.mark.parametrize("crop_px", INNER)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("interpolation", EXACT)
def test_a_crop_inside_the_image_is_caffes(crop_px, mirror, interpolation):
    geometry = Geometry(crop_px, interpolation, mirror)
    found = render(scene(), geometry, None, (300, 200))
    np.testing.assert_array_equal(found, unfused(scene(), geometry, None, (300, 200)))


@pytest.mark.parametrize("crop_px", INNER)
def test_lanczos_differs_from_caffes_by_a_level_at_most(crop_px):
    geometry = Geometry(crop_px, cv2.INTER_LANCZOS4, mirror=False)
    error = difference(render(scene(), geometry, None, SIZE), unfused(scene(), geometry, None))
    assert error.max() <= 1
    assert error.mean() < 0.2


def draws(purpose: str, count: int, config: AugmentationConfig):
    """Geometries that reach beyond an image of 500 x 375."""
    rng = stream(0, purpose)
    while count:
        geometry, _, _ = draw_geometry(rng, OBJECTS, 500, 375, config)
        x0, y0, x1, y1 = geometry.crop_px
        if (
            (x0 < 0 or y0 < 0 or x1 > 500 or y1 > 375)
            and x0 < 500
            and y0 < 375
            and x1 > 0
            and y1 > 0
        ):
            count -= 1
            yield geometry


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_crop_that_reaches_outside_is_caffes_but_for_a_fraction_of_a_pixel(interpolation):
    image, errors = scene(), []
    for geometry in draws("outside", 20, AugmentationConfig(expand_probability=1.0)):
        drawn = geometry._replace(interpolation=interpolation)
        error = difference(render(image, drawn, None, SIZE), unfused(image, drawn, None))
        errors.append(error.mean())
    assert np.mean(errors) < 0.15
    assert max(errors) < 0.8


@pytest.mark.parametrize("interpolation", EXACT)
@pytest.mark.parametrize("extent", [200, 450])
def test_where_the_grids_meet_a_crop_that_reaches_outside_is_caffes(interpolation, extent):
    """300 output pixels for 200 or 450: every second or third begins with one of the image."""
    geometry = Geometry((-51, -60, extent - 51, extent - 60), interpolation, mirror=False)
    image = scene(100, 90)
    np.testing.assert_array_equal(
        render(image, geometry, None, SIZE), unfused(image, geometry, None)
    )


def test_an_expanded_image_lies_where_caffe_puts_it():
    """The centre of gravity of a white image on the darker canvas, in pixels of the output."""
    image = np.full((375, 500, 3), 255, np.uint8)
    for geometry in draws("gravity", 20, AugmentationConfig(expand_probability=1.0, crop=False)):
        weights = [
            picture.astype(float).mean(axis=-1) - np.mean(MEAN_RGB)
            for picture in (render(image, geometry, None, SIZE), unfused(image, geometry, None))
        ]
        for axis in (0, 1):
            ours, theirs = (
                np.average(np.arange(300), weights=np.abs(weight).sum(axis=axis))
                for weight in weights
            )
            assert abs(ours - theirs) < 0.2


@pytest.mark.parametrize(
    ("colour", "rounding"),
    [
        (Colour(brightness=25.5, contrast=1.4), 0),
        (Colour(brightness=-30.2, contrast=1.3, contrast_last=True), 0),
        # OpenCV's HSV depends on the width of an image, by a level.
        (Colour(contrast=0.6, saturation=1.45), 3),
        (Colour(hue=-17.6, contrast=1.2, contrast_last=True), 3),
        (Colour(brightness=9.5, hue=16.2), 3),
    ],
)
def test_a_distortion_is_caffes_where_the_crop_grows(colour, rounding):
    geometry = Geometry((100, 80, 330, 290), cv2.INTER_LINEAR, mirror=True)
    error = difference(render(scene(), geometry, colour, SIZE), unfused(scene(), geometry, colour))
    assert error.max() <= rounding
    assert error.mean() < 0.03


def test_saturation_and_hue_share_one_trip_through_hsv_at_little_cost():
    rng = stream(0, "hsv")
    for _ in range(15):
        saturation, hue = rng.uniform(0.5, 1.5), rng.uniform(-18, 18)
        error = difference(
            distort(scene(), Colour(saturation=saturation, hue=hue)),
            caffe.distort(scene(), 0, 1, saturation, hue, contrast_last=False),
        )
        assert error.mean() < 1


def test_distorting_after_the_resize_costs_little():
    """The deviation from Caffe's order, over what is drawn: a level, where noise has six."""
    image, config, rng = scene(), AugmentationConfig(), stream(0, "order")
    errors = []
    for _ in range(80):
        geometry, _, _ = draw_geometry(rng, OBJECTS, 500, 375, config)
        colour = draw_colour(rng, config)
        found = render(image, geometry, colour, SIZE)
        errors.append(difference(found, unfused(image, geometry, colour)).mean())
    assert np.mean(errors) < 0.4
    assert max(errors) < 2


def test_the_mean_colour_outside_is_not_distorted():
    geometry = Geometry((-500, -375, 1000, 750), cv2.INTER_LINEAR, mirror=False)
    found = render(scene(), geometry, Colour(brightness=32.0, contrast=1.5), SIZE)
    outside = np.ones(SIZE, bool)
    outside[99:201, 99:201] = False
    assert (found[outside] == MEAN_RGB).all()
    assert found[100:200, 100:200].mean() > scene().mean() + 32
    assert MEAN_RGB == caffe.MEAN_RGB


def test_a_crop_that_misses_the_image_is_of_the_mean_colour():
    for crop_px in [(500, 0, 700, 100), (-90, 0, 0, 375), (0, 375, 10, 999), (-50, -50, -10, -5)]:
        found = render(scene(), Geometry(crop_px, cv2.INTER_CUBIC, True), Colour(9.0), (50, 40))
        assert found.shape == (50, 40, 3)
        assert (found == MEAN_RGB).all()


def test_any_crop_of_any_image_is_rendered():
    """Slivers of a pixel, images of a pixel, crops of a pixel."""
    rng, errors = stream(0, "any"), []
    for _ in range(200):
        width, height, out_width, out_height = (int(v) for v in rng.integers(1, 40, 4))
        x0, y0 = int(rng.integers(-30, width + 5)), int(rng.integers(-30, height + 5))
        crop_px = (x0, y0, x0 + int(rng.integers(1, 70)), y0 + int(rng.integers(1, 70)))
        geometry = Geometry(crop_px, int(rng.choice(INTERPOLATIONS)), bool(rng.random() < 0.5))
        colour = draw_colour(rng, AugmentationConfig())
        image, size = scene(width, height), (out_height, out_width)
        found = render(image, geometry, colour, size)
        assert found.shape == (*size, 3)
        assert found.dtype == np.uint8
        errors.append(difference(found, unfused(image, geometry, colour, size)).mean())
    assert np.mean(errors) < 0.6
    assert np.quantile(errors, 0.99) < 6


def test_boxes_follow_the_pixels():
    """A bright rectangle, found again in the output by its brightness, is where its box is."""
    box_px = np.array([260, 180, 420, 330])
    image = np.zeros((480, 640, 3), np.uint8)
    image[180:330, 260:420] = 255
    boxes = (box_px / (640, 480, 640, 480)).astype(np.float32)[None]
    rng, seen, mirrored = stream(0, "follow"), 0, 0
    for _ in range(160):
        geometry, mapped, kept = draw_geometry(rng, boxes, 640, 480, AugmentationConfig())
        if not len(kept):
            continue
        rows, columns = np.nonzero(render(image, geometry, None, SIZE)[..., 0] > 190)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        x0, y0, x1, y1 = geometry.crop_px
        # Caffe truncates the crop, but not the boxes: a pixel of the image, as wide as it now is.
        # Interpolation moves the edge by half of one, the raster of the output by one of its own.
        pixel = np.tile([300 / (x1 - x0), 300 / (y1 - y0)], 2)
        assert (np.abs(found - mapped[0] * 300) <= 1 + 1.5 * pixel).all()
        seen, mirrored = seen + 1, mirrored + geometry.mirror
    assert seen > 80
    assert 25 < mirrored < seen - 25


def test_render_returns_an_image_of_its_own():
    """And leaves its input alone: `scene` is read-only."""
    cases = [
        (whole_image(500, 375), Colour(20.0, 1.2, 1.3, 9.0), (375, 500)),
        (whole_image(500, 375), None, (375, 500)),
        (Geometry((-20, -20, 520, 395), cv2.INTER_AREA, False), Colour(20.0, 1.2), SIZE),
    ]
    for geometry, colour, size in cases:
        found = render(scene(), geometry, colour, size)
        assert not np.shares_memory(found, scene())
        assert found.flags.c_contiguous
        assert found.flags.writeable


def test_evaluation_is_a_linear_resize():
    found = render(scene(), whole_image(500, 375), None, (512, 300))
    np.testing.assert_array_equal(found, cv2.resize(scene(), (300, 512)))


def test_hue_stays_at_zero_but_goes_round_above():
    hsv = np.array([[[5, 200, 200], [175, 200, 200]]], np.uint8)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    down = cv2.cvtColor(distort(rgb, Colour(hue=-18.0)), cv2.COLOR_RGB2HSV)
    up = cv2.cvtColor(distort(rgb, Colour(hue=18.0)), cv2.COLOR_RGB2HSV)
    np.testing.assert_array_equal(down[0, :, 0], [0, 157])
    np.testing.assert_array_equal(up[0, :, 0], [23, 13])


def test_every_level_becomes_what_caffe_makes_of_it():
    """Without rounding errors: the products and sums are rounded once, halves to even."""
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    rng = stream(0, "levels")
    for _ in range(300):
        colour = Colour(
            rng.uniform(-32, 32), rng.uniform(0.5, 1.5), contrast_last=bool(rng.random() < 0.5)
        )
        np.testing.assert_array_equal(distort(levels, colour), caffe.distort(levels, *colour))


def test_every_operation_saturates_before_the_next():
    level = np.full((1, 1, 3), 240, np.uint8)
    assert distort(level, Colour(brightness=32.0, contrast=0.5)).max() == 128  # not 136
    assert distort(level, Colour(brightness=-32.0, contrast=1.5)).max() == 255
    # Rounded half to even: 5 * 0.5.
    assert distort(np.full((1, 1, 3), 5, np.uint8), Colour(contrast=0.5)).max() == 2


def test_without_distortion_the_image_itself_comes_back():
    image = scene()
    assert distort(image, Colour()) is image


def test_colours_are_drawn_as_in_caffe():
    """Five fair and independent coins; the values uniform where the coin says so."""
    count, rng = 6000, stream(0, "colour")
    drawn = np.array([draw_colour(rng, AugmentationConfig()) for _ in range(count)], float)
    coins = drawn != (0, 1, 1, 0, 0)
    patterns = np.bincount(coins @ (1, 2, 4, 8, 16), minlength=32) / count
    assert np.abs(patterns - 1 / 32).max() < 6 * np.sqrt(1 / 32 * 31 / 32 / count)
    for column, (low, high) in enumerate([(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18)]):
        values = np.sort(drawn[coins[:, column], column])
        uniform = (values - low) / (high - low)
        steps = np.arange(1, len(values) + 1) / len(values)
        # Exceeded once in 10^8 times by equal distributions.
        assert np.abs(uniform - steps).max() < 3.1 / np.sqrt(len(values))


def test_nothing_is_distorted_if_the_configuration_says_so():
    assert draw_colour(stream(0, "off"), AugmentationConfig(distort=False)) == Colour()
