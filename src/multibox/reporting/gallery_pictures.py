"""Chooses the pictures of the galleries within a limit of bytes, and makes them."""

from collections.abc import Iterator, Mapping
from typing import Any

from multibox.data.images import read_image
from multibox.errors import MultiboxError
from multibox.reporting.evaluated import EvaluatedSplit
from multibox.reporting.incidents import LISTED, Gallery, Incident, marks
from multibox.reporting.pictures import picture, region_around

MAX_BYTES = 3_600_000
"""Largest sum of the pictures' sizes in base64."""


def embed(split: EvaluatedSplit, galleries: Mapping[str, Gallery]) -> dict[str, Any]:
    """Returns the galleries and their pictures as a JSON value.

    Every gallery gets its first picture before any gets its second. If the limit is reached, the
    remaining entries have no picture. Neither does an image that cannot be read.

    Returns:
        `pictures`, and `galleries` by key: `title`, `count`, and `entries` of the picture's index
        or -1, the image's id, and the caption.
    """
    annotations = split.dataset.annotations
    pictures: list[dict[str, Any]] = []
    places: dict[Incident, int] = {}
    size = 0
    for incident in _in_turn(galleries):
        if size >= MAX_BYTES or incident in places:
            continue
        annotation = annotations[incident.image]
        try:
            pixels = read_image(annotation.image_path)
        except MultiboxError:
            places[incident] = -1
            continue
        shown, focus = marks(split, incident)
        frame = (annotation.width_px, annotation.height_px)
        region = region_around(focus, frame) if focus else None
        made = picture(pixels, shown, region=region)
        places[incident] = len(pictures)
        pictures.append(made)
        size += len(made["image"]) + 30 * len(made["boxes"])
    return {
        "pictures": pictures,
        "galleries": {
            key: {
                "title": gallery.title,
                "count": gallery.total,
                "entries": [
                    [places.get(each, -1), annotations[each.image].image_id, each.caption]
                    for each in gallery.incidents
                ],
            }
            for key, gallery in galleries.items()
            if gallery.total
        },
    }


def _in_turn(galleries: Mapping[str, Gallery]) -> Iterator[Incident]:
    for place in range(LISTED):
        for gallery in galleries.values():
            yield from gallery.incidents[place : place + 1]
