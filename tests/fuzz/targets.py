"""All parsers that read what others wrote, with the count of cases that each is put to."""

from fuzz import (
    annotations,
    answers,
    exported_files,
    packed,
    pictures,
    records,
    shards,
    tables,
    videos,
    weights,
    zipped,
)
from fuzz.sweep import Target

TARGETS = (
    Target("voc-xml", annotations.voc_xml, quick=150),
    Target("image-sets", annotations.image_sets, quick=500),
    Target("voc-files", annotations.voc_files, quick=150),
    Target("cvat-xml", annotations.cvat_xml, quick=250),
    Target("coco-json", annotations.coco_json, quick=400),
    Target("yolo-labels", tables.yolo_labels, quick=250),
    Target("yolo-description", tables.yolo_description, quick=250),
    Target("csv-table", tables.csv_table, quick=300),
    Target("labelme-json", annotations.labelme_json, quick=400),
    Target("label-studio-json", annotations.label_studio_json, quick=400),
    Target("zip-dataset", zipped.dataset, quick=250, many=20_000),
    Target("check", annotations.check_verb, quick=150),
    Target("config", records.config_json, quick=500),
    Target("run-folder", records.run_folder, quick=120),
    Target("checkpoint", records.checkpoint_folder, quick=250),
    Target("results", records.results, quick=1_000),
    Target("coco-results", records.coco_results, quick=1_000),
    Target("arguments", records.arguments, quick=15, many=20_000),
    Target("archive", packed.archive, quick=500),
    Target("archive-member", packed.archive_member, quick=300),
    Target("tar-shard", shards.shard, quick=200, many=20_000, extra_bytes=256 << 20),
    Target("video", videos.video, quick=150, many=20_000, extra_bytes=256 << 20),
    Target("download", answers.download, quick=200),
    Target("image-header", pictures.header, quick=1_500),
    Target("image", pictures.image, quick=600, extra_bytes=256 << 20),
    Target("own-weights", weights.own, quick=300),
    Target("caffemodel", weights.caffemodel, quick=250),
    Target("keras-h5", weights.keras, quick=150),
    Target("pytorch-pth", weights.pytorch, quick=200),
    Target("onnx-export", exported_files.onnx_file, quick=60, many=5_000, extra_bytes=256 << 20),
    Target(
        "openvino-export", exported_files.openvino_file, quick=40, many=3_000, extra_bytes=256 << 20
    ),
)
