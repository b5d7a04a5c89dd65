"""SSD: a backbone that yields feature maps, and two convolutional heads on each of them.

The network takes RGB pixels as they are decoded, 0..255, and normalises them itself, so that a
weights file carries all that a prediction needs. It returns raw offsets and logits, always.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from multibox.ssd.backbones.vgg import L2Norm
from multibox.ssd.coding import CAFFE_VARIANCES, Variances
from multibox.ssd.default_boxes import Clip, Level, default_boxes
from multibox.ssd.detect import DetectionSettings, detect
from multibox.structures import MEAN_RGB, Detections, Output

Scales = Literal["voc", "coco"]


class Traits(NamedTuple):
    """Where published implementations of one architecture differ; by default Caffe's for VOC.

    Attributes:
        mean_rgb: Subtracted from the pixels, which are 0..255.
        pixel_scale: What the rest is multiplied by.
        scales: Which of the architecture's tables of default boxes; that of an architecture which
            has only one is `voc`.
        clip: What of these boxes is clamped to the image.
        whole_scales: Their scales are cut to whole pixels.
        clip_detections: Detected boxes are clipped to the image before suppression.
    """

    mean_rgb: tuple[float, float, float] = MEAN_RGB
    pixel_scale: float = 1.0
    scales: Scales = "voc"
    clip: Clip = "none"
    whole_scales: bool = True
    clip_detections: bool = False


CAFFE = Traits()


class Backbone(Protocol):
    """What the heads need to know of a backbone.

    Attributes:
        channels: Channels of each feature map, finest first.
    """

    channels: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps, (B, channels[i], rows, columns) of the levels."""
        ...


class SSD(nn.Module):
    """A single-shot detector.

    Args:
        backbone: A module that is a `Backbone`.
        levels: The default boxes of each of its feature maps, of the table `traits.scales`.
        image_size_px: (height, width) of the input.
        num_classes: C, not counting the background.
        traits: How pixels are normalised and default boxes and detections clipped.
        variances: Of the offsets.
        head_kernel: Side of the heads' convolutions.

    Attributes:
        default_boxes: float32 (K, 4), xyxy in the unit frame.
    """

    default_boxes: Tensor
    mean: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        *,
        image_size_px: tuple[int, int],
        num_classes: int,
        traits: Traits = CAFFE,
        variances: Variances = CAFFE_VARIANCES,
        head_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_size_px = image_size_px
        self.traits = traits
        self.variances = variances
        channels = cast(Backbone, backbone).channels
        sizes = [level.boxes_per_cell for level in levels]

        def heads(per_box: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(inputs, boxes * per_box, head_kernel, padding=head_kernel // 2)
                for inputs, boxes in zip(channels, sizes, strict=True)
            )

        self.offset_heads = heads(4)
        self.logit_heads = heads(num_classes + 1)
        mean = torch.tensor(traits.mean_rgb).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        table = default_boxes(levels, image_size_px, traits.clip, whole_scales=traits.whole_scales)
        self.register_buffer("default_boxes", table, persistent=False)

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Output:
        """Returns the offsets and logits of RGB images, uint8 or float in 0..255."""
        pixels = (images.to(torch.float32) - self.mean) * self.traits.pixel_scale
        maps = self.backbone(pixels)
        offsets = [head(x) for head, x in zip(self.offset_heads, maps, strict=True)]
        logits = [head(x) for head, x in zip(self.logit_heads, maps, strict=True)]
        return Output(_by_box(offsets, 4), _by_box(logits, self.num_classes + 1))

    def detect(self, output: Output, *, score_threshold: float = 0.0) -> list[Detections]:
        """Returns the detections of each image in an output of this network (see `detect`).

        Args:
            output: This network's.
            score_threshold: Detections of a lower score are left out; others are as without it,
                because only better ones decide about them.
        """
        settings = DetectionSettings(clip=self.traits.clip_detections)
        below = torch.nextafter(torch.tensor(score_threshold), torch.tensor(-1.0)).item()
        settings = settings._replace(score_threshold=max(settings.score_threshold, below))
        return detect(output, self.default_boxes, settings, self.variances)


def _by_box(maps: Sequence[Tensor], width: int) -> Float[Tensor, "B K width"]:
    """Concatenates head outputs (B, A * width, H, W) in the order of the default boxes."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps], dim=1)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fills all parameters and running statistics.

    Convolutions: uniform within sqrt(3 / fan_in) and zero biases, which is Caffe's `xavier`
    (`filler.hpp:144-166`; PyTorch's function of that name also counts the outputs). Batch
    normalisation: identity. L2 normalisation: 20.

    Args:
        network: Any module made of the layers of this package.
        generator: Draws all values, in order of the modules.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear", generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, L2Norm):
            module.weight.fill_(L2Norm.INITIAL_SCALE)


def parameter_groups(
    network: nn.Module, *, lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Returns Caffe's groups for an optimizer (`model_libs.py:84-90`).

    Weights and the scale of the L2 normalisation decay; biases learn twice as fast and do not
    decay; batch normalisation learns at the common rate and does not decay. Each group has a
    `lr_multiplier`, for schedules.
    """
    weights, biases, norms = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d):
                norms.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                weights.append(parameter)
    groups = [(weights, 1.0, weight_decay), (biases, 2.0, 0.0), (norms, 1.0, 0.0)]
    return [
        {
            "params": parameters,
            "lr": lr * multiplier,
            "lr_multiplier": multiplier,
            "weight_decay": decay,
        }
        for parameters, multiplier, decay in groups
        if parameters
    ]
