"""What a run is: frozen dataclasses with a docstring per field, and their way to and from JSON.

Field names are unique over all sections, because each is a flat flag of the command line.
Nothing derivable is stored, and nothing here mutates: `__post_init__` only refuses.
"""

import dataclasses
import difflib
import json
import sys
import typing
from dataclasses import dataclass
from typing import Any, Literal

from multibox.errors import ConfigError

FORMAT = 2
"""Of `config.json`. It rises with every field that is added, so that an older multibox says what is
wrong. Files of before the number are of format 1.

A field that is absent takes its default. So the default of a new field must be what runs did before
there was the field.
"""

ScheduleName = Literal["multistep", "cosine", "plateau"]
OptimizerName = Literal["sgd", "adam", "adamw"]
Precision = Literal["auto", "bf16", "fp32"]
DefaultBoxes = Literal["own", "voc", "coco"]


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value}, but {rule}", remedy=f"Change --{_flag(field)}")


def _flag(field: str) -> str:
    return field.replace("_", "-")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images a run learns from and is judged on."""

    train_split: str = "trainval"
    """Splits to train on, joined by +, each with its year where the folder has several:
    2007:trainval+2012:trainval."""

    test_split: str = "test"
    """Splits for the validation loss and the average precision."""

    classes: tuple[str, ...] = ()
    """Class names in the order of the network's outputs; empty: those found in the training
    split, sorted, or in the order of COCO's category ids."""

    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with objects and images that cannot be used: list them all and stop, or list
    them all and go on without them."""

    train_difficult: bool = True
    """Learn from difficult objects too, as SSD does on VOC. COCO's crowds are such objects, and
    SSD leaves them out (`ssd_coco.py:271, 288`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Caffe's chain (SSD section 3.6, `ssd_pascal.py:89-210`)."""

    distort: bool = True
    """Brightness, contrast, saturation and hue."""

    expand_probability: float = 0.5
    """How often an image is put into a larger canvas of the mean colour."""

    expand_max_ratio: float = 4.0
    """The largest side of that canvas over the image's."""

    crop: bool = True
    """Cut out a patch by one of the seven batch samplers."""

    mirror_probability: float = 0.5
    """How often left and right are swapped."""

    def __post_init__(self) -> None:
        for field in ("expand_probability", "mirror_probability"):
            value = getattr(self, field)
            _require(0 <= value <= 1, field, value, "a probability lies in 0..1")
        _require(
            1 <= self.expand_max_ratio <= 16,
            "expand_max_ratio",
            self.expand_max_ratio,
            "the canvas is 1 to 16 times the image",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How the weights move."""

    optimizer: OptimizerName = "sgd"
    """The rule of the update."""

    lr: float = 0.001
    """Learning rate of the weights; biases have twice as much."""

    momentum: float = 0.9
    """Momentum of SGD; Adam's first beta."""

    lr_in_velocity: bool = False
    """SGD as in Caffe: what the weights are moving at is kept when the rate drops
    (`sgd_solver.cpp:134-260`), not multiplied by the drop as well. adam and adamw have no such
    velocity and ignore this."""

    weight_decay: float = 0.0005
    """L2 decay of the weights; biases and batch normalisation have none."""

    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""

    accumulate: int = 1
    """Parts a batch is worked through in, to save memory. The sum is that of the whole batch,
    but batch normalisation sees the parts."""

    accumulate_normaliser: Literal["batch", "part"] = "batch"
    """What the loss of a part is divided by: the matched boxes of the whole batch, or its own, as
    Caffe's iter_size does. Then the parts' losses are averaged (`sgd_solver.cpp:90-105`)."""

    l2norm_gradient: Literal["exact", "caffe"] = "exact"
    """The gradient through the L2 normalisation of VGG networks. exact: the derivative. caffe: the
    formula of Caffe, which differs from it once the scales differ (`normalize_layer.cpp:135-231`).
    """

    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is evaluated and kept; 0: no average."""

    def __post_init__(self) -> None:
        _require(0 < self.lr < float("inf"), "lr", self.lr, "a learning rate is above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "it lies in 0..1")
        _require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "it lies in 0..1")
        _require(
            0 <= self.clip_norm < float("inf"),
            "clip_norm",
            self.clip_norm,
            "a norm is finite and not negative",
        )
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "it is at least 1")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "it lies in 0..1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate goes over the steps."""

    steps: int = 120_000
    """Updates of the weights, in all."""

    schedule: ScheduleName = "multistep"
    """multistep drops the rate at --drops, plateau when the validation loss has converged, cosine
    lets it fall smoothly to 0 at the end."""

    drops: tuple[int, ...] = (80_000, 100_000)
    """multistep: the steps from which the rate is lower."""

    drop_factor: float = 0.1
    """multistep and plateau: what a drop multiplies the rate by."""

    warmup_steps: int = 500
    """Steps over which the rate first rises linearly; 0 is the original."""

    plateau_patience: int = 8
    """plateau: validations without a better loss before a drop."""

    plateau_threshold: float = 0.002
    """plateau: how much lower than the best, relatively, a loss must be to count as better."""

    plateau_drops: int = 2
    """plateau: how many drops there are at the most."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "a run has at least one step")
        _require(
            list(self.drops) == sorted(set(self.drops)), "drops", self.drops, "drops must ascend"
        )
        _require(0 < self.drop_factor < 1, "drop_factor", self.drop_factor, "it lies in 0..1")
        _require(
            self.plateau_patience >= 1,
            "plateau_patience",
            self.plateau_patience,
            "it is at least 1",
        )
        for field in ("warmup_steps", "plateau_drops", "plateau_threshold"):
            value = getattr(self, field)
            _require(0 <= value < float("inf"), field, value, "it is finite and not negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How the run is driven."""

    seed: int = 0
    """Decides the initial weights, the order of the images and every augmentation."""

    batch_size: int = 32
    """Images per step, over all processes."""

    precision: Precision = "auto"
    """Arithmetic of the network; auto: bf16 where the hardware computes it, else fp32."""

    log_every: int = 1_000
    """Steps whose mean loss makes one line of the journal."""

    validate_every: int = 1_000
    """Steps between validation losses."""

    evaluate_every: int = 20_000
    """Steps between average precisions; the last step is always evaluated."""

    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """When a loss or gradient is NaN or infinite: stop before the update, or go back to the last
    checkpoint and halve the learning rate."""

    checkpoint_every: int = 1_000
    """Steps between checkpoints."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, besides the best."""

    workers: int = -1
    """Processes that prepare the images; 0: the training process itself; -1: by the hardware."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto: a GPU where there is one."""

    pipeline: Literal["cpu", "cuda"] = "cpu"
    """Where images are cropped, resized and distorted: in --workers, or where the network runs,
    whose memory then holds all training images. Boxes are the same, pixels but for rounding."""

    compile: bool = False
    """Train with the network as PyTorch's compiler translates it, after some minutes for that. It
    needs a C++ compiler, on a GPU Triton. The results are the same but for rounding."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a seed lies in 0..2^63")
        for field in (
            "batch_size",
            "log_every",
            "validate_every",
            "evaluate_every",
            "checkpoint_every",
        ):
            value = getattr(self, field)
            _require(value >= 1, field, value, "it is at least 1")
        _require(
            self.keep_checkpoints >= 2,
            "keep_checkpoints",
            self.keep_checkpoints,
            "a sound one must remain while the newest is written: at least 2",
        )
        _require(-1 <= self.workers <= 64, "workers", self.workers, "it lies in -1..64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that decides the result of a run, besides the data.

    Attributes:
        network: The architecture's name, e.g. `ssd300-vgg16`.
        default_boxes: Sizes of the default boxes: the architecture's own, or those of Caffe's
            networks for VOC or for COCO, which are smaller.
    """

    network: str
    default_boxes: DefaultBoxes = "own"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        batch, parts = self.run.batch_size, self.optimizer.accumulate
        _require(batch % parts == 0, "accumulate", parts, f"it must divide the batch size, {batch}")

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
        """Returns the configuration in a JSON value; an absent field has its default.

        Raises:
            ConfigError: The format is newer, or a field is unknown or of a wrong type, or the
                network is missing.
        """
        if isinstance(value, dict):
            value = dict(value)
            number = value.pop("format", FORMAT)
            if type(number) is not int or number < 1:
                raise ConfigError(
                    f"{number!r} is not a format", file=file, position="config.format"
                )
            if number > FORMAT:
                raise ConfigError(
                    f"has format {number}, but this version reads formats up to {FORMAT}",
                    file=file,
                    remedy="Use the version of multibox that wrote it, or a newer one",
                )
        return typing.cast(Config, _parse(cls, value, "config", file))


# What may change when a run is continued, because it does not alter the result.
OPERATIONAL = frozenset(
    {"workers", "device", "keep_checkpoints", "checkpoint_every", "on_nonfinite"}
)


def differences(stored: Config, given: Config) -> list[str]:
    """Returns `flag: stored, now given` for every field that may not change on resume but did."""
    found = []
    before, now = flatten(stored), flatten(given)
    for field in before:
        if field not in OPERATIONAL and before[field] != now[field]:
            found.append(f"--{_flag(field)}: {before[field]}, now {now[field]}")
    return found


def flatten(config: Config) -> dict[str, Any]:
    """Returns all fields by their (unique) names, without the sections."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _parse(kind: Any, value: Any, position: str, file: str | None) -> Any:
    """Reads a JSON value as a type, strictly; only fields that have a default may be absent."""
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
