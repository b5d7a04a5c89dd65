import pytest

from multibox.ssd.default_boxes import (
    SSD300_COCO,
    SSD300_VOC,
    SSD512_COCO,
    SSD512_VOC,
    Level,
    default_boxes,
)


@pytest.mark.parametrize(
    ("name", "levels", "side"),
    [
        ("ssd300_voc", SSD300_VOC, 300),
        ("ssd300_coco", SSD300_COCO, 300),
        ("ssd512_voc", SSD512_VOC, 512),
        ("ssd512_coco", SSD512_COCO, 512),
    ],
)
def test_default_boxes_are_caffes_bit_for_bit(
    recorded, compare, name: str, levels: tuple[Level, ...], side: int
) -> None:
    ours = default_boxes(levels, (side, side))
    compare(f"coordinates, {name}", ours, recorded("prior_box")[f"{name}_sqrt64"], tolerance=0)
