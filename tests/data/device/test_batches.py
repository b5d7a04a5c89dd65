"""What a device renders is what OpenCV and Caffe do, and what the CPU's pipeline shows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from oracles import caffe_augmentation as caffe
from tiny import tiny_network

from multibox.build import matcher
from multibox.commands.demo.dataset import draw_dataset
from multibox.config import AugmentationConfig
from multibox.data.device import batches as device_batches
from multibox.data.device.batches import load, resident_batches
from multibox.data.device.plan import Plan, join_plans, plan
from multibox.data.device.render import ColourTables, colour_tables, render
from multibox.data.device.resampling import UNIT, find_taps
from multibox.data.formats.voc import read_voc
from multibox.data.geometry import INTERPOLATIONS, Geometry, draw_geometry, whole_image
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.data.pixels import Colour, distort, draw_colour
from multibox.data.pixels import render as render_on_cpu
from multibox.errors import ConfigError, DataError
from multibox.rng import stream
from multibox.structures import MEAN_RGB, Batch

CPU = torch.device("cpu")
SIZE = (120, 100)
NOTHING = Colour()
OBJECTS = np.array([(0.1, 0.2, 0.5, 0.7), (0.4, 0.4, 0.9, 0.8)], np.float32)


@pytest.fixture(scope="module")
def tables() -> ColourTables:
    return colour_tables(CPU)


def scene(width: int = 224, height: int = 160) -> np.ndarray:
    """Waves with edges and a little noise."""
    y, x = np.mgrid[:height, :width] / 40
    disc = 60 * ((x - 2) ** 2 + (y - 1.5) ** 2 < 1)
    planes = [120 + 60 * np.sin(3 * x + k) + 50 * np.cos(2.3 * y * (k + 1) - x) for k in range(3)]
    noisy = np.stack(planes, axis=-1) + disc[..., None]
    noisy += stream(0, "scene").normal(0, 6, noisy.shape)
    return cv2.GaussianBlur(np.clip(noisy, 0, 255).astype(np.uint8), (3, 3), 0.8)


def noise(width: int, height: int) -> np.ndarray:
    return stream(0, "noise").integers(0, 256, (height, width, 3), dtype=np.uint8)


def on_device(
    image: np.ndarray,
    geometry: Geometry,
    colour: Colour,
    size: tuple[int, int],
    tables: ColourTables | None = None,
) -> np.ndarray:
    plans = join_plans([plan(geometry, colour, image.shape[:2], size, 0)], size)
    found = render(torch.from_numpy(image).reshape(-1, 3), plans, tables, size)
    return found[0].permute(1, 2, 0).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b)


def geometries(purpose: str, count: int) -> list[Geometry]:
    rng = stream(0, purpose)
    drawn = [draw_geometry(rng, OBJECTS, 224, 160, AugmentationConfig()) for _ in range(count)]
    return [geometry for geometry, _, _ in drawn]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_resize_is_opencvs_within_a_level(interpolation: int) -> None:
    rng, errors = stream(0, "sizes"), []
    for _ in range(60):
        width, height, out_width, out_height = (int(n) for n in rng.integers(1, 120, 4))
        image, size = noise(width, height), (out_height, out_width)
        whole = whole_image(width, height)._replace(interpolation=interpolation)
        found = on_device(image, whole, NOTHING, size)
        expected = cv2.resize(image, size[::-1], interpolation=interpolation)
        errors.append(difference(found, expected))
    assert max(error.max() for error in errors) <= (interpolation != cv2.INTER_NEAREST)
    assert np.mean([error.mean() for error in errors]) < 0.15


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_crop_is_caffes_within_a_level_and_the_cpus(interpolation: int) -> None:
    """`pixels.render` moves what reaches outside by up to 1/32 pixel: that shows at edges."""
    image, to_caffe, to_cpu = scene(), [], []
    for drawn in geometries("crops", 30):
        geometry = drawn._replace(interpolation=interpolation)
        found = on_device(image, geometry, NOTHING, SIZE)
        to_caffe.append(difference(found, caffe.render(image, *geometry, None, SIZE)))
        to_cpu.append(difference(found, render_on_cpu(image, geometry, None, SIZE)))
    assert np.max(to_caffe) <= (interpolation != cv2.INTER_NEAREST)
    assert np.mean(to_caffe) < 0.15
    assert np.mean(to_cpu) < 0.2
    assert np.quantile(to_cpu, 0.999) <= 8


def test_distorted_crops_are_caffes_and_the_cpus(tables: ColourTables) -> None:
    """Caffe's order: colours, then the resize; the CPU's pipeline resizes first where it shrinks.

    Saturation and hue share one trip through HSV, unlike in Caffe.
    """
    image, rng, to_caffe, to_cpu = scene(), stream(0, "colours"), [], []
    for geometry in geometries("distorted", 60):
        colour = draw_colour(rng, AugmentationConfig())
        found = on_device(image, geometry, colour, SIZE, tables)
        to_caffe.append(difference(found, caffe.render(image, *geometry, tuple(colour), SIZE)))
        to_cpu.append(difference(found, render_on_cpu(image, geometry, colour, SIZE)))
    assert np.mean(to_caffe) < 0.15
    assert np.mean(to_cpu) < 0.4
    assert max(error.mean() for error in to_cpu) < 2


def test_colours_alone_are_opencvs(tables: ColourTables) -> None:
    """But for columns behind its last vector, where OpenCV converts otherwise, by a level."""
    image, rng = scene(256, 20), stream(0, "plain")
    for _ in range(30):
        colour = draw_colour(rng, AugmentationConfig())
        whole = Geometry((0, 0, 256, 20), cv2.INTER_NEAREST, mirror=False)
        error = difference(
            on_device(image, whole, colour, (20, 256), tables), distort(image, colour)
        )
        assert error.max() <= 2
        assert error.mean() < 0.01


def assorted(count: int) -> list[tuple[Geometry, Colour, np.ndarray]]:
    """Slivers of a pixel, images of a pixel, crops that miss the image, and usual ones."""
    rng, found = stream(0, "assorted"), []
    for _ in range(count):
        width, height = (int(n) for n in rng.integers(1, 60, 2))
        x0, y0 = int(rng.integers(-40, width + 5)), int(rng.integers(-40, height + 5))
        crop = (x0, y0, x0 + int(rng.integers(1, 90)), y0 + int(rng.integers(1, 90)))
        geometry = Geometry(crop, int(rng.choice(INTERPOLATIONS)), bool(rng.random() < 0.5))
        image = noise(width, height)
        image = 255 * (image & 1) if rng.random() < 0.5 else image
        found.append((geometry, draw_colour(rng, AugmentationConfig()), image))
    return found


def test_a_sample_has_the_same_bits_in_any_batch(tables: ColourTables) -> None:
    samples, size = assorted(40), (33, 50)
    firsts = np.cumsum([0, *(image.shape[0] * image.shape[1] for _, _, image in samples)])
    stored = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for *_, image in samples]))
    plans = [
        plan(geometry, colour, image.shape[:2], size, int(first))
        for (geometry, colour, image), first in zip(samples, firsts[:-1], strict=True)
    ]

    def rendered(chosen: Sequence[Plan]) -> torch.Tensor:
        return render(stored, join_plans(chosen, size), tables, size)

    together = rendered(plans)
    assert torch.equal(rendered(plans[::-1]).flip(0), together)
    alone = torch.cat([rendered([each]) for each in plans])
    assert torch.equal(alone, together)
    errors = [
        difference(
            found.permute(1, 2, 0).numpy(), caffe.render(image, *geometry, tuple(colour), size)
        ).mean()
        for (geometry, colour, image), found in zip(samples, together, strict=True)
    ]
    assert np.mean(errors) < 0.1
    assert max(errors) < 1


def test_no_sum_is_rounded() -> None:
    """The products are those of whole numbers in int64, where black meets white, too."""
    image, size = 255 * (noise(90, 70) & 1), (64, 64)
    for kind in INTERPOLATIONS:
        weights = []
        for extent in (70, 90):
            taps = find_taps(extent, 64, kind, shrinks=True)
            assert (taps.weights.sum(axis=1) == UNIT).all()
            matrix = np.zeros((64, extent), np.int64)
            np.add.at(matrix, (np.arange(64)[:, None], taps.places), taps.weights)
            weights.append(matrix)
        across = np.einsum("xw,hwc->hxc", weights[1], image - np.array(MEAN_RGB))
        sums = np.einsum("yh,hxc->yxc", weights[0], np.rint(across * 8 / UNIT).astype(np.int64))
        expected = np.clip(np.rint(sums / (8 * UNIT) + MEAN_RGB), 0, 255)
        whole = whole_image(90, 70)._replace(interpolation=kind)
        np.testing.assert_array_equal(on_device(image, whole, NOTHING, size), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resident") / "data"
    draw_dataset(folder, train_images=5, test_images=1)
    return folder


def line(folder: Path, augmentation: AugmentationConfig | None = None) -> TrainingExamples:
    annotations = read_voc(folder, "trainval").annotations
    return TrainingExamples(annotations, (48, 64), augmentation or AugmentationConfig(), 3)


def loaded(examples: TrainingExamples) -> device_batches.ResidentExamples:
    return load(examples, CPU, batch_size=4, workers=2, progress=lambda *_: None)


def test_batches_are_the_cpus_but_for_the_rounding_of_pixels(folder: Path) -> None:
    def steps() -> list[list[int]]:
        return list(training_numbers(range(2, 6), batch_size=4, rank=0, world_size=1))

    told: list[tuple[int, int]] = []
    images = load(line(folder), CPU, batch_size=4, workers=2, progress=lambda *n: told.append(n))
    assert told == [(done, 5) for done in range(1, 6)]
    match = matcher(tiny_network(), difficult=False)
    expected = list(batches(line(folder), steps(), workers=0, pin_memory=False, match=match))
    assert all((batch.matches.classes > 0).any() for batch in expected)
    for workers in (0, 2):
        found = list(resident_batches(images, steps(), workers=workers, match=match))
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(exact_parts(one), exact_parts(other), strict=True):
                assert torch.equal(a, b)
            assert one.images.shape == other.images.shape
            assert one.images.dtype == torch.uint8
            assert one.images.is_contiguous(memory_format=torch.channels_last)
            assert (one.images.float() - other.images.float()).abs().mean() < 0.6
        if workers == 0:
            first = [batch.images for batch in found]
        else:
            assert all(torch.equal(a, b.images) for a, b in zip(first, found, strict=True))


def exact_parts(batch: Batch) -> list[torch.Tensor]:
    return [*batch.targets, *batch.matches, batch.samples, batch.indices]


def test_what_does_not_fit_is_refused_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = line(folder)
    pixels = 3 * sum(item.width_px * item.height_px for item in examples.annotations)
    monkeypatch.setattr(device_batches, "_free_bytes", lambda _: pixels)
    monkeypatch.setattr(device_batches, "read_pixels", None)
    with pytest.raises(ConfigError, match=rf"need \d+ bytes .* where {pixels} are free") as refusal:
        loaded(examples)
    assert "--pipeline cpu" in str(refusal.value)


def test_an_image_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    examples = line(folder, AugmentationConfig(distort=False))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(examples.annotations[3].image_path.read_bytes()[:900])
    annotations = list(examples.annotations)
    annotations[3] = replace(annotations[3], image_path=broken)
    with pytest.raises(DataError, match=r"broken\.jpg.*damaged"):
        loaded(replace(examples, annotations=annotations))
    annotations[3] = replace(annotations[0], width_px=7)
    with pytest.raises(DataError, match="its annotation was read as 7 x"):
        loaded(replace(examples, annotations=annotations))
