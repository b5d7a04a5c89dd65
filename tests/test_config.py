import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.build import NETWORKS
from multibox.config import (
    FORMAT,
    OPERATIONAL,
    AugmentationConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    differences,
    flatten,
)
from multibox.errors import ConfigError
from multibox.recipes import RECIPES

DEFAULT = Config(network="ssd300-vgg16")
# Differs from the defaults in every field.
CHANGED = Config(
    network="ssd300-lite",
    default_boxes="coco",
    fit_boxes=True,
    data=DataConfig(
        train_split="train",
        val_split="val",
        test_split="minival",
        split="80/20",
        classes=("b", "ä"),
        on_bad="skip",
        train_difficult=False,
    ),
    augmentation=AugmentationConfig(
        distort=False,
        expand_probability=0.25,
        expand_max_ratio=2.0,
        crop=False,
        mirror_probability=0.0,
    ),
    loss=LossConfig(
        box_loss="ciou", box_weight=2.0, class_loss="focal", label_smoothing=0.1, pisa=True
    ),
    optimizer=OptimizerConfig(
        optimizer="adamw",
        lr=0.1 + 0.2,
        momentum=0.8,
        lr_in_velocity=True,
        weight_decay=1e-300,
        clip_norm=10.0,
        accumulate=4,
        accumulate_normaliser="part",
        l2norm_gradient="caffe",
        ema_decay=0.999,
        swa_from=5,
        frozen_stages=2,
    ),
    schedule=ScheduleConfig(
        steps=7,
        schedule="plateau",
        drops=(1, 2, 3),
        drop_factor=0.5,
        warmup_steps=0,
        plateau_patience=1,
        plateau_threshold=0.0,
        plateau_drops=1,
    ),
    run=RunConfig(
        seed=2**63 - 1,
        batch_size=12,
        sync_batch_norm=True,
        precision="bf16",
        log_every=1,
        validate_every=2,
        evaluate_every=3,
        patience=2,
        test_weights="best",
        on_nonfinite="rollback",
        checkpoint_every=4,
        keep_checkpoints=5,
        workers=0,
        device="cpu",
        pipeline="cuda",
        compile=True,
    ),
)
WITHOUT_SECTION = ["network", "default_boxes", "fit_boxes"]
SECTIONS = [field.name for field in dataclasses.fields(Config) if field.name not in WITHOUT_SECTION]
FIELDS = [
    (section, field.name)
    for section in SECTIONS
    for field in dataclasses.fields(getattr(DEFAULT, section))
]


def with_field(section: str, field: str, value: object) -> Config:
    """The default configuration but for one field."""
    changed = dataclasses.replace(getattr(DEFAULT, section), **{field: value})
    return dataclasses.replace(DEFAULT, **{section: changed})


def parse(content: Any) -> Config:
    return Config.from_json(json.dumps(content), file="runs/a/config.json")


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The default configuration as JSON, after an edit in place."""
    content = json.loads(DEFAULT.to_json())
    edit(content)
    return content


# --- there and back


@pytest.mark.parametrize("config", [DEFAULT, CHANGED])
def test_json_round_trip(config: Config) -> None:
    assert Config.from_json(config.to_json()) == config


def test_an_absent_field_has_its_default() -> None:
    whole = json.loads(CHANGED.to_json())
    for section, field in FIELDS:
        content = whole | {section: {n: v for n, v in whole[section].items() if n != field}}
        default = getattr(getattr(DEFAULT, section), field)
        # Whoever adds a field has to keep what runs did before.
        changed = dataclasses.replace(getattr(CHANGED, section), **{field: default})
        assert parse(content) == dataclasses.replace(CHANGED, **{section: changed})
    assert parse({"network": "ssd300-vgg16"}) == DEFAULT


def test_a_newer_format_is_refused() -> None:
    assert json.loads(DEFAULT.to_json())["format"] == FORMAT
    newer = {"format": FORMAT + 1, "network": {"name": "of a form that nobody knows yet"}}
    with pytest.raises(ConfigError, match=rf"has format {FORMAT + 1}, but this version reads"):
        parse(newer)


def test_an_integer_may_stand_for_a_float() -> None:
    config = parse(edited(lambda c: c["optimizer"].update(clip_norm=10)))
    assert config == with_field("optimizer", "clip_norm", 10.0)
    assert config.to_json() == with_field("optimizer", "clip_norm", 10.0).to_json()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete_configurations(name: str) -> None:
    config = RECIPES[name]()
    assert RECIPES[name].__name__ == name.replace("-", "_")
    assert RECIPES[name].__doc__
    assert config.network in NETWORKS
    again = Config.from_json(config.to_json())
    assert again == config


# --- fields


def test_field_names_are_unique_over_the_sections() -> None:
    names = [*WITHOUT_SECTION, *(field for _, field in FIELDS)]
    assert len(set(names)) == len(names)
    assert list(flatten(DEFAULT)) == names


def test_operational_fields_exist() -> None:
    assert set(flatten(DEFAULT)) > OPERATIONAL


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.run.seed = 1


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_what_a_change_of_a_field_means(section: str, field: str) -> None:
    value = getattr(getattr(CHANGED, section), field)
    config = with_field(section, field, value)
    assert config != DEFAULT
    if field in OPERATIONAL:
        assert differences(DEFAULT, config) == []
    else:
        before = getattr(getattr(DEFAULT, section), field)
        flag = field.replace("_", "-")
        assert differences(DEFAULT, config) == [f"--{flag}: {before}, now {value}"]


def test_differences_are_listed_all() -> None:
    assert differences(DEFAULT, DEFAULT) == []
    assert len(differences(DEFAULT, CHANGED)) == len(FIELDS) + len(WITHOUT_SECTION) - len(
        OPERATIONAL
    )


# --- refusals


def test_text_that_is_not_json() -> None:
    for text in ("", "{", "[" * 100_000, "\x00"):
        with pytest.raises(ConfigError, match=r"^runs/a/config.json: not JSON"):
            Config.from_json(text, file="runs/a/config.json")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(netwrk="a"), "config: unknown field 'netwrk'. Did you mean 'network'?"),
        (lambda c: c["run"].update(sed=1), "config.run: unknown field 'sed'. Did you mean 'seed'?"),
        (lambda c: c["run"].update(xyz=1), "config.run: unknown field 'xyz'."),
        (lambda c: c.pop("network"), "config: lacks network."),
        (lambda c: c.update(format="1"), "config.format: '1' is not a format number."),
        (lambda c: c.update(format=0), "config.format: 0 is not a format number."),
        (lambda c: c.update(run=[]), "config.run: must be an object."),
        (lambda c: c["run"].update(seed=1.5), "config.run.seed: 1.5 is not of type int."),
        (lambda c: c["run"].update(seed=True), "config.run.seed: True is not of type int."),
        (lambda c: c["run"].update(seed=None), "config.run.seed: None is not of type int."),
        (lambda c: c["optimizer"].update(lr="1"), "config.optimizer.lr: '1' is not of type float."),
        (lambda c: c["optimizer"].update(lr=True), "optimizer.lr: True is not of type float."),
        (lambda c: c["optimizer"].update(lr=10**400), "is not of type float."),
        (lambda c: c["optimizer"].update(lr=math.nan), "nan is not of type float."),
        (
            lambda c: c["augmentation"].update(crop=1),
            "config.augmentation.crop: 1 is not of type bool",
        ),
        (lambda c: c["run"].update(device="tpu"), "config.run.device: 'tpu' is not of type"),
        (lambda c: c.update(default_boxes="kitti"), "config.default_boxes: 'kitti' is not of type"),
        (lambda c: c["data"].update(classes="ab"), "config.data.classes: 'ab' is not of type"),
        (
            lambda c: c["data"].update(classes=["a", 1]),
            "config.data.classes: 1 is not of type str.",
        ),
        (lambda c: c["schedule"].update(drops=[1.0]), "config.schedule.drops: 1.0 is not of type"),
        (
            lambda c: c["optimizer"].update(lr=-1),
            "config.optimizer: lr is -1.0, but it must be finite",
        ),
        (
            lambda c: c["optimizer"].update(accumulate=3),
            "config: accumulate is 3, but it must divide",
        ),
    ],
)
def test_json_that_is_no_configuration(edit: Callable[[Any], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(edited(edit))
    assert str(caught.value).startswith("runs/a/config.json, config")
    assert message in str(caught.value)


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_is_type_checked(section: str, field: str) -> None:
    for value in ({}, None, [[]]):
        content = edited(lambda c, value=value: c[section].update({field: value}))
        with pytest.raises(ConfigError) as caught:
            parse(content)
        assert caught.value.position == f"config.{section}.{field}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FIELDS), json_values)
def test_any_value_is_taken_or_refused(where: tuple[str, str], value: object) -> None:
    section, field = where
    content = edited(lambda c: c[section].update({field: value}))
    try:
        found = parse(content).to_json()
    except ConfigError as error:
        found = str(error)
    assert found.startswith("runs/a/config.json, config") or json.loads(found) == content


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("augmentation", "expand_probability", 1.1),
        ("augmentation", "expand_probability", -0.1),
        ("augmentation", "mirror_probability", 1.1),
        ("augmentation", "expand_max_ratio", 0.9),
        ("augmentation", "expand_max_ratio", 17.0),
        ("loss", "box_weight", 0.0),
        ("loss", "box_weight", math.inf),
        ("loss", "label_smoothing", 1.0),
        ("loss", "label_smoothing", -0.1),
        ("optimizer", "swa_from", -1),
        ("optimizer", "lr", 0.0),
        ("optimizer", "lr", math.inf),
        ("optimizer", "momentum", 1.0),
        ("optimizer", "weight_decay", -1e-9),
        ("optimizer", "clip_norm", -1.0),
        ("optimizer", "clip_norm", math.inf),
        ("optimizer", "accumulate", 0),
        ("optimizer", "ema_decay", 1.0),
        ("optimizer", "frozen_stages", -1),
        ("schedule", "steps", 0),
        ("schedule", "drops", (2, 1)),
        ("schedule", "drops", (1, 1)),
        ("schedule", "drop_factor", 1.0),
        ("schedule", "drop_factor", 0.0),
        ("schedule", "warmup_steps", -1),
        ("schedule", "plateau_patience", 0),
        ("schedule", "plateau_threshold", math.inf),
        ("schedule", "plateau_drops", -1),
        ("run", "seed", -1),
        ("run", "seed", 2**63),
        ("run", "batch_size", 0),
        ("run", "log_every", 0),
        ("run", "validate_every", 0),
        ("run", "evaluate_every", 0),
        ("run", "checkpoint_every", 0),
        ("run", "keep_checkpoints", 1),
        ("run", "workers", -2),
        ("run", "workers", 65),
    ],
)
def test_values_out_of_range_are_refused(section: str, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        with_field(section, field, value)
    assert str(caught.value).startswith(f"{field} is {value}, but ")
    assert caught.value.remedy == f"Change --{field.replace('_', '-')}"
    assert caught.value.exit_code == 2


def test_no_number_is_in_range_that_is_none() -> None:
    for section, field in FIELDS:
        if isinstance(getattr(getattr(DEFAULT, section), field), float):
            with pytest.raises(ConfigError):
                with_field(section, field, math.nan)


def test_the_parts_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="accumulate is 3, but it must divide the batch size, 32"):
        dataclasses.replace(DEFAULT, optimizer=OptimizerConfig(accumulate=3))
