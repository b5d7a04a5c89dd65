"""All parsers that read what others wrote, with the count of cases that each is put to."""

from fuzz import annotations, packed, pictures, records, weights
from fuzz.sweep import Target

TARGETS = (
    Target("voc-xml", annotations.voc_xml, quick=600),
    Target("image-sets", annotations.image_sets, quick=1_000),
    Target("coco-json", annotations.coco_json, quick=1_500),
    Target("check", annotations.check_verb, quick=300),
    Target("config", records.config_json, quick=2_000),
    Target("run-folder", records.run_folder, quick=500),
    Target("checkpoint", records.checkpoint_folder, quick=1_000),
    Target("results", records.results, quick=2_000),
    Target("arguments", records.arguments, quick=60, many=20_000),
    Target("archive", packed.archive, quick=1_000),
    Target("image-header", pictures.header, quick=2_000),
    Target("image", pictures.image, quick=1_000, extra_bytes=256 << 20),
    Target("own-weights", weights.own, quick=600),
    Target("caffemodel", weights.caffemodel, quick=1_000),
    Target("keras-h5", weights.keras, quick=200),
    Target("pytorch-pth", weights.pytorch, quick=300),
)
