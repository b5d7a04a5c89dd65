"""The configuration of a run: frozen dataclasses that are written to and read from JSON.

Each field is an option of the command line, without its section. So field names are unique over
all sections. The docstring of a field is the help text of its option. Values that can be derived
are not stored, and `__post_init__` only checks.
"""

import dataclasses
import difflib
import json
import sys
import typing
from dataclasses import dataclass
from typing import Any, Literal

from multibox.errors import ConfigError

FORMAT = 3
"""Format of `config.json`. It rises with every new field, so that an older multibox can report a
file that is too new. A file without a number has format 1.

A field that is absent from the file gets its default. So the default of a new field must be what
runs did before the field existed.
"""

ScheduleName = Literal["multistep", "cosine", "plateau"]
OptimizerName = Literal["sgd", "adam", "adamw"]
Precision = Literal["auto", "bf16", "fp32"]
DefaultBoxes = Literal["own", "voc", "coco"]
BoxLoss = Literal["smooth_l1", "giou", "ciou"]
ClassLoss = Literal["softmax", "focal"]


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value}, but {rule}", remedy=f"Change --{_flag(field)}")


def _flag(field: str) -> str:
    return field.replace("_", "-")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The images for training and evaluation."""

    train_split: str = "trainval"
    """Splits to train on, joined by +. If the folder has several years, name the year of each:
    2007:trainval+2012:trainval."""

    val_split: str = ""
    """Splits for the validation loss, the average precision during training, plateaus, --patience
    and the best checkpoint. Empty: the test split, as the original does."""

    test_split: str = "test"
    """Splits for the result. With a validation split, they are evaluated once, at the end.
    Empty: there are no images for a result, and --val-split has to be given."""

    split: str = ""
    """Draw the splits train, val and test from all images with these shares, such as 80/10/10.
    Near-duplicate images stay together. Empty: use the splits of the folder."""

    classes: tuple[str, ...] = ()
    """Class names in the order of the network's outputs.
    Empty: all classes of the training split, sorted by name (COCO: by category id)."""

    on_bad: Literal["fail", "skip"] = "fail"
    """fail: list all invalid objects and images, and stop. skip: list them and leave them out."""

    train_difficult: bool = True
    """Also train on objects marked difficult, as SSD does on VOC.
    COCO's crowds count as difficult; SSD does not train on them (`ssd_coco.py:271, 288`)."""

    def __post_init__(self) -> None:
        _require(
            bool(self.val_split or self.test_split),
            "test_split",
            "empty",
            "without a validation split there must be one",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Random changes to training images, as in Caffe (SSD section 3.6, `ssd_pascal.py:89-210`)."""

    distort: bool = True
    """Change brightness, contrast, saturation and hue."""

    expand_probability: float = 0.5
    """Probability of placing an image on a larger canvas of the mean colour."""

    expand_max_ratio: float = 4.0
    """Largest ratio of the canvas's side to the image's side, 1..16."""

    crop: bool = True
    """Crop a patch with one of SSD's seven batch samplers."""

    mirror_probability: float = 0.5
    """Probability of flipping an image left to right."""

    def __post_init__(self) -> None:
        for field in ("expand_probability", "mirror_probability"):
            value = getattr(self, field)
            _require(0 <= value <= 1, field, value, "a probability must lie in 0..1")
        _require(
            1 <= self.expand_max_ratio <= 16,
            "expand_max_ratio",
            self.expand_max_ratio,
            "it must lie in 1..16",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The loss in training. The validation loss is always that of SSD, so that runs compare."""

    box_loss: BoxLoss = "smooth_l1"
    """Loss of a matched box. smooth_l1: of its offsets, as in SSD. giou, ciou: 1 - GIoU or 1 - CIoU
    of the decoded box."""

    box_weight: float = 1.0
    """Factor of the localization loss."""

    class_loss: ClassLoss = "softmax"
    """softmax: cross-entropy of matched boxes and hard negatives, as in SSD. focal: the focal loss
    of all default boxes; the background of a new network starts with a probability of 0.99."""

    label_smoothing: float = 0.0
    """softmax: probability that the target spreads evenly over all classes and the background."""

    pisa: bool = False
    """Weight matched boxes by importance (PISA): those with the best overlap count most.
    Each process ranks its own share of the batch."""

    def __post_init__(self) -> None:
        weight, smoothing = self.box_weight, self.label_smoothing
        _require(0 < weight < float("inf"), "box_weight", weight, "it must be finite and above 0")
        _require(0 <= smoothing < 1, "label_smoothing", smoothing, "it must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How the weights are updated."""

    optimizer: OptimizerName = "sgd"
    """Algorithm that updates the weights."""

    lr: float = 0.001
    """Learning rate of the weights; biases learn twice as fast."""

    momentum: float = 0.9
    """Momentum of sgd; first beta of adam and adamw."""

    lr_in_velocity: bool = False
    """sgd: multiply the gradient by the rate before momentum, as Caffe does
    (`sgd_solver.cpp:134-260`). Then a drop of the rate does not slow down the current velocity.
    adam and adamw ignore this."""

    weight_decay: float = 0.0005
    """L2 decay of the weights. Biases and batch normalisation do not decay."""

    clip_norm: float = 0.0
    """Largest norm of the gradient; larger ones are scaled down. 0: no clipping."""

    accumulate: int = 1
    """Number of parts in which a batch is processed, to save memory.
    Gradients are added up over the batch, but batch normalisation sees each part alone."""

    accumulate_normaliser: Literal["batch", "part"] = "batch"
    """batch: divide the loss of each part by the matched boxes of the whole batch. part: divide it
    by those of the part, then average over the parts, as Caffe's iter_size does
    (`sgd_solver.cpp:90-105`)."""

    l2norm_gradient: Literal["exact", "caffe"] = "exact"
    """Gradient of the L2 normalisation in VGG networks. exact: the derivative. caffe: the formula
    of Caffe, which differs from the derivative if the scales differ
    (`normalize_layer.cpp:135-231`)."""

    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is evaluated and saved. 0: no average."""

    swa_from: int = 0
    """Evaluate and save the plain average of the weights after this many steps and all later ones
    (stochastic weight averaging), instead of the moving average. 0: no plain average."""

    frozen_stages: int = 0
    """Number of first stages that keep their initial weights and statistics of batch normalisation.
    The networks on EfficientNet-Lite0 and MobileNet have 5 stages, which end at strides 2, 4, 8, 16
    and 32."""

    def __post_init__(self) -> None:
        _require(0 < self.lr < float("inf"), "lr", self.lr, "it must be finite and above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "it must lie in [0, 1)")
        decay = self.weight_decay
        _require(0 <= decay < 1, "weight_decay", decay, "it must lie in [0, 1)")
        _require(
            0 <= self.clip_norm < float("inf"),
            "clip_norm",
            self.clip_norm,
            "it must be finite and not negative",
        )
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "it must be at least 1")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "it must lie in [0, 1)")
        _require(self.swa_from >= 0, "swa_from", self.swa_from, "it must not be negative")
        _require(
            self.frozen_stages >= 0, "frozen_stages", self.frozen_stages, "it must not be negative"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How long to train, and how the learning rate changes."""

    steps: int = 120_000
    """Number of steps, each of which updates the weights once."""

    schedule: ScheduleName = "multistep"
    """multistep lowers the rate at --drops; plateau lowers it when the validation loss stops
    improving; cosine lowers it smoothly, to 0 at the end."""

    drops: tuple[int, ...] = (80_000, 100_000)
    """multistep: steps at which the rate drops, ascending."""

    drop_factor: float = 0.1
    """multistep and plateau: factor by which a drop multiplies the rate."""

    warmup_steps: int = 500
    """Number of steps over which the rate first rises linearly; 0, as in Caffe: no warm-up."""

    plateau_patience: int = 8
    """plateau: number of validations in a row without improvement before a drop."""

    plateau_threshold: float = 0.002
    """plateau: an improvement lowers the best loss by more than this fraction."""

    plateau_drops: int = 2
    """plateau: largest number of drops."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "it must be at least 1")
        _require(
            list(self.drops) == sorted(set(self.drops)), "drops", self.drops, "drops must ascend"
        )
        factor = self.drop_factor
        _require(0 < factor < 1, "drop_factor", factor, "it must lie between 0 and 1")
        _require(
            self.plateau_patience >= 1,
            "plateau_patience",
            self.plateau_patience,
            "it must be at least 1",
        )
        for field in ("warmup_steps", "plateau_drops", "plateau_threshold"):
            value = getattr(self, field)
            _require(0 <= value < float("inf"), field, value, "it must be finite and not negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Seed, batch size, hardware, and what the run writes at which steps."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""

    batch_size: int = 32
    """Number of images per step, over all processes together."""

    sync_batch_norm: bool = False
    """Normalise with the statistics of all processes, so that the number of processes changes the
    result only by rounding. Each layer then takes three sums over the processes per step."""

    precision: Precision = "auto"
    """Number format of the network. auto: bf16 if the hardware supports it, else fp32."""

    log_every: int = 1_000
    """Write the mean loss to metrics.jsonl every this many steps."""

    validate_every: int = 1_000
    """Compute the validation loss every this many steps."""

    evaluate_every: int = 20_000
    """Compute the average precision every this many steps, and after the last one."""

    patience: int = 0
    """Stop early when this many evaluations in a row have not raised the best average precision.
    0: never."""

    test_weights: Literal["last", "best"] = "last"
    """Weights for the result on the test split: the last ones, or those with the best average
    precision on the validation split."""

    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """If a loss or gradient is NaN or infinite: stop before the update, or roll back to the last
    checkpoint and halve the learning rate."""

    checkpoint_every: int = 1_000
    """Save a checkpoint every this many steps."""

    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, besides the best; at least 2."""

    workers: int = -1
    """Number of processes that prepare images. 0: the training process prepares them.
    -1: chosen by the number of cores."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""

    pipeline: Literal["cpu", "cuda"] = "cpu"
    """Where images are cropped, resized and distorted. cpu: in the --workers.
    cuda: on the network's device, which then holds all training images in its memory.
    Boxes are the same; pixels differ by rounding."""

    compile: bool = False
    """Train with torch.compile. It needs some minutes at the start, a C++ compiler, and Triton on a
    GPU. Results differ by rounding."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, "it must lie in 0..2^63 - 1")
        for field in (
            "batch_size",
            "log_every",
            "validate_every",
            "evaluate_every",
            "checkpoint_every",
        ):
            value = getattr(self, field)
            _require(value >= 1, field, value, "it must be at least 1")
        _require(
            self.keep_checkpoints >= 2,
            "keep_checkpoints",
            self.keep_checkpoints,
            "it must be at least 2, so that an intact one remains if the newest is damaged",
        )
        _require(self.patience >= 0, "patience", self.patience, "it must not be negative")
        _require(-1 <= self.workers <= 64, "workers", self.workers, "it must lie in -1..64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything except the data that determines the result of a run.

    Attributes:
        network: Name of the architecture, e.g. `ssd300-vgg16`.
        default_boxes: Sizes of the default boxes: the architecture's own, or Caffe's for VOC or
            for COCO (smaller).
        fit_boxes: Fit the sizes and ratios of the default boxes to the objects of the training
            split. The weights store them.
    """

    network: str
    default_boxes: DefaultBoxes = "own"
    fit_boxes: bool = False
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        batch, parts = self.run.batch_size, self.optimizer.accumulate
        _require(batch % parts == 0, "accumulate", parts, f"it must divide the batch size, {batch}")

    def override(self, values: dict[str, Any]) -> "Config":
        """Returns the configuration with other values of some fields, by name.

        Raises:
            ConfigError: A value is out of range.
        """
        sections: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                own = {name: values[name] for name in values if hasattr(value, name)}
                sections[field.name] = dataclasses.replace(value, **own)
            elif field.name in values:
                sections[field.name] = values[field.name]
        return dataclasses.replace(self, **sections)

    def to_json(self) -> str:
        """Returns the configuration as indented JSON, which `from_json` reads back."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, file: str | None = None) -> "Config":
        """Returns the configuration that `to_json` of this or an older version wrote.

        Raises:
            ConfigError: The text is not JSON, or not a configuration that this version knows.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not JSON ({error})", file=file) from None
        return cls.from_value(value, file=file)

    @classmethod
    def from_value(cls, value: object, *, file: str | None = None) -> "Config":
        """Returns the configuration in a JSON value; an absent field gets its default.

        Raises:
            ConfigError: The format is newer, a field is unknown or has the wrong type, or the
                network is missing.
        """
        if isinstance(value, dict):
            value = dict(value)
            number = value.pop("format", FORMAT)
            if type(number) is not int or number < 1:
                raise ConfigError(
                    f"{number!r} is not a format number", file=file, position="config.format"
                )
            if number > FORMAT:
                raise ConfigError(
                    f"has format {number}, but this version reads formats up to {FORMAT}",
                    file=file,
                    remedy="Use the version of multibox that wrote it, or a newer one",
                )
        return typing.cast(Config, _parse(cls, value, "config", file))


# Fields that may change when a run is resumed, because they do not affect the result.
OPERATIONAL = frozenset(
    {"workers", "device", "keep_checkpoints", "checkpoint_every", "on_nonfinite"}
)


def differences(stored: Config, given: Config) -> list[str]:
    """Returns `flag: stored, now given` for each changed field that must not change on resume."""
    found = []
    before, now = flatten(stored), flatten(given)
    for field in before:
        if field not in OPERATIONAL and before[field] != now[field]:
            found.append(f"--{_flag(field)}: {before[field]}, now {now[field]}")
    return found


def flatten(config: Config) -> dict[str, Any]:
    """Returns the values of all fields by name, without the sections."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _parse(kind: Any, value: Any, position: str, file: str | None) -> Any:
    """Returns a JSON value as a strictly checked type. Only fields with a default may be absent."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict):
            raise ConfigError("must be an object", file=file, position=position)
        for name in value:
            if name not in hints:
                near = difflib.get_close_matches(name, hints, n=1)
                raise ConfigError(
                    f"unknown field {name!r}",
                    file=file,
                    position=position,
                    remedy=f"Did you mean {near[0]!r}?" if near else None,
                )
        for field in dataclasses.fields(kind):
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and field.name not in value:
                raise ConfigError(f"lacks {field.name}", file=file, position=position)
        parsed = {n: _parse(hints[n], v, f"{position}.{n}", file) for n, v in value.items()}
        try:
            return kind(**parsed)  # type: ignore[operator]  # is_dataclass does not narrow to it
        except ConfigError as error:
            raise ConfigError(error.reason, file=file, position=position) from None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        sound = value in arguments
    elif origin is tuple:
        sound = isinstance(value, list)
        if sound:
            return tuple(_parse(arguments[0], item, position, file) for item in value)
    elif kind is float:
        sound = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        sound = type(value) is kind
    if not sound:
        expected = kind.__name__ if isinstance(kind, type) else kind
        raise ConfigError(f"{value!r} is not of type {expected}", file=file, position=position)
    return float(value) if kind is float else value
