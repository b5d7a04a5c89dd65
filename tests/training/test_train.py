"""Whole runs of a tiny network in this process: resume, rollback, journal, milestones."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_layout import export_coco
from rich.console import Console
from tiny import SIDE, SMALLER, TINY

from multibox import Detector, build
from multibox.build import network_shape
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.evaluate import evaluate_model, evaluate_results
from multibox.commands.report import write_report
from multibox.commands.train import Request, check_shares, train
from multibox.config import AugmentationConfig, Config, OptimizerConfig, RunConfig, ScheduleConfig
from multibox.data.formats.voc import read_voc
from multibox.data.pipeline import PlainExamples, batches, without_difficult
from multibox.errors import (
    ConfigError,
    MultiboxError,
    NonFiniteError,
    StorageError,
    WeightsError,
)
from multibox.processes.distributed import Processes
from multibox.processes.signals import Interrupted
from multibox.recipes import ssd7
from multibox.ssd.default_boxes import default_boxes
from multibox.ssd.loss import multibox_loss
from multibox.ssd.matching import match
from multibox.ssd.network import SSD, Traits
from multibox.storage import checkpoint
from multibox.storage.lock import RunLock
from multibox.structures import Batch
from multibox.training.data_loader import BatchLoader
from multibox.training.train_step import Learner, NonFinite, StepLosses
from multibox.weights.files import find_weights, load_network, read_weights

CONFIG = Config(
    network="tiny",
    optimizer=OptimizerConfig(lr=0.005, ema_decay=0.9),
    schedule=ScheduleConfig(steps=12, schedule="multistep", drops=(6, 9), warmup_steps=2),
    run=RunConfig(
        batch_size=4,
        precision="fp32",
        log_every=3,
        validate_every=4,
        evaluate_every=6,
        checkpoint_every=5,
        device="cpu",
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "VOC2007"
    draw_dataset(folder, train_images=10, test_images=4)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


def run(data: Path, out: Path, config: Config = CONFIG) -> str:
    """Trains and returns what was said."""
    said = io.StringIO()
    request = Request("tiny", config, data, out, None, "none")
    train(request, Console(file=said, width=80))
    return said.getvalue()


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def digests(out: Path) -> dict[str, str]:
    files = [out / "metrics.jsonl", *out.glob("evaluations/**/*"), *out.glob("checkpoints/*12/*")]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def steps_of(out: Path, kind: str) -> list[int]:
    return [line["step"] for line in journal(out) if line["kind"] == kind]


@pytest.fixture
def finished(data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "finished"
    run(data, out)
    return out


def test_the_journal_has_every_line_once(finished: Path) -> None:
    assert steps_of(finished, "train") == [3, 6, 9, 12]
    assert steps_of(finished, "validation") == [4, 8, 12]
    assert steps_of(finished, "evaluation") == [6, 12]
    assert steps_of(finished, "drop") == [6, 9]
    drops = [line["lr"] for line in journal(finished) if line["kind"] == "drop"]
    assert drops == pytest.approx([0.0005, 0.00005])
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept[-2:] == ["step-00000010", "step-00000012"]


def test_a_run_learns_difficult_objects_unless_told_otherwise(data: Path, tmp_path: Path) -> None:
    hard = tmp_path / "hard"
    shutil.copytree(data, hard)
    for path in hard.glob("Annotations/*.xml"):
        text = path.read_text()
        path.write_text(text.replace("<difficult>0<", "<difficult>1<"))
    for train_difficult in (True, False):
        out = tmp_path / f"{train_difficult}"
        run(hard, out, replace(CONFIG, data=replace(CONFIG.data, train_difficult=train_difficult)))
        lines = [line for line in journal(out) if line["kind"] == "train"]
        assert all((line["positives"] > 0) == train_difficult for line in lines)


def test_a_run_with_decoded_images_has_the_same_bits_and_leaves_none(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "decoded", io.StringIO()
    request = Request("tiny", CONFIG, data, out, None, "none", decoded_cache_gib=0.5)
    train(request, Console(file=said, width=200))
    assert "Decoding 10 of 10 images" in said.getvalue()
    assert digests(out) == digests(finished)
    assert {path.name for path in out.iterdir()} == {path.name for path in finished.iterdir()}


def test_a_run_on_coco_s_layout_has_the_same_bits(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    root, out = export_coco(data, tmp_path / "coco"), tmp_path / "run"
    run(root, out)
    for step in (6, 12):
        # The split alone is called otherwise, there with its year.
        name = f"evaluations/step-{step:08d}.json"
        record, expected = (json.loads((folder / name).read_text()) for folder in (out, finished))
        assert record | {"split": "2007:test"} == expected
        (out / name).write_bytes((finished / name).read_bytes())
    assert digests(out) == digests(finished)
    results = out / "evaluations" / "step-00000012"
    found, missing = evaluate_results(results, data=root, split="test")
    assert (found, missing) == evaluate_results(results, data=data, split="test")
    assert missing == []


class PowerCutError(Exception):
    """Ends a run at any place, as a kill does: nothing is saved."""


def cut_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    original, left = Learner.step, [calls]

    def step(self: Learner, batch: Batch, *, lr: float, number: int) -> StepLosses:
        if not left[0]:
            raise PowerCutError
        left[0] -= 1
        return original(self, batch, lr=lr, number=number)

    monkeypatch.setattr(Learner, "step", step)


def test_a_run_cut_again_and_again_ends_with_the_same_bits(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    # The eighth step comes after the checkpoints of 5 and 6; the journal has lines beyond them.
    for calls in (3, 8, 4, 1):
        with monkeypatch.context() as patch:
            cut_after(patch, calls)
            with pytest.raises(PowerCutError):
                run(data, out)
    run(data, out)
    assert digests(out) == digests(finished)


def test_a_resume_reads_one_checkpoint_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        cut_after(patch, 8)
        with pytest.raises(PowerCutError):
            run(data, out)
    read, load = [], checkpoint.load

    def noted(path: Path) -> checkpoint.Checkpoint:
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", noted)
    run(data, out)
    assert read == ["step-00000006"]


def test_a_run_builds_its_network_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, make = [], build.SSD

    def noted(*arguments: Any, **rest: Any) -> SSD:
        network = make(*arguments, **rest)
        # Before the data are read, only shapes are known, which cost nothing.
        built.append(not network.default_boxes.is_meta)
        return network

    monkeypatch.setattr(build, "SSD", noted)
    run(data, tmp_path / "run")
    assert sum(built) == 1


def test_a_finished_run_is_left_alone(data: Path, finished: Path) -> None:
    before = digests(finished)
    run(data, finished)
    assert digests(finished) == before


def fail_at(monkeypatch: pytest.MonkeyPatch, step_number: int, *, above_lr: float) -> None:
    """Makes one step non-finite for as long as the rate is high."""
    original = Learner.step

    def step(self: Learner, batch: Batch, *, lr: float, number: int) -> StepLosses:
        if number + 1 == step_number and lr > above_lr:
            raise NonFinite("the loss is NaN")
        return original(self, batch, lr=lr, number=number)

    monkeypatch.setattr(Learner, "step", step)


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 8, above_lr=0)
    with pytest.raises(NonFiniteError, match=r"step 8.*\.jpg.*\.jpg.*\.jpg.*\.jpg"):
        run(data, tmp_path / "run")
    assert steps_of(tmp_path / "run", "train") == [3, 6]


def test_a_rollback_halves_the_rate_and_is_in_the_journal_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At step 8 the rate is 0.0005; two halvings make it 0.000125.
    fail_at(monkeypatch, 8, above_lr=0.0002)
    config = replace(CONFIG, run=replace(CONFIG.run, on_nonfinite="rollback"))
    out = tmp_path / "run"
    said = run(data, out, config)
    assert "Step 8: the loss is NaN. Back to step 6" in said
    rollbacks = [line for line in journal(out) if line["kind"] == "rollback"]
    assert [(line["step"], line["to"], line["lr_scale"]) for line in rollbacks] == [
        (8, 6, 0.5),
        (8, 6, 0.25),
    ]
    assert all(len(line["images"]) == 4 for line in rollbacks)
    assert steps_of(out, "train") == [3, 6, 9, 12]
    last = [line["lr"] for line in journal(out) if line["kind"] == "train"][-1]
    assert last == pytest.approx(0.005 * 0.01 * 0.25)
    again = tmp_path / "again"
    for calls in (7, 4):
        with monkeypatch.context() as patch:
            cut_after(patch, calls)
            with pytest.raises(PowerCutError):
                run(data, again, config)
    run(data, again, config)
    assert digests(again) == digests(out)


def test_rollbacks_that_do_not_help_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 3, above_lr=0)
    config = replace(CONFIG, run=replace(CONFIG.run, on_nonfinite="rollback"))
    with pytest.raises(NonFiniteError, match="10 rollbacks"):
        run(data, tmp_path / "run", config)


def test_the_plateau_drops_the_rate_when_validation_does_not_improve(
    data: Path, tmp_path: Path
) -> None:
    # Nothing counts as better than the first loss but a tenth of it.
    schedule = ScheduleConfig(
        steps=12, schedule="plateau", plateau_patience=2, plateau_threshold=0.9, warmup_steps=0
    )
    run_config = replace(CONFIG.run, validate_every=2)
    run(data, tmp_path / "run", replace(CONFIG, schedule=schedule, run=run_config))
    assert steps_of(tmp_path / "run", "drop") == [6, 10]
    rates = [line["lr"] for line in journal(tmp_path / "run") if line["kind"] == "train"]
    assert rates == pytest.approx([0.005, 0.005, 0.0005, 0.00005])


def test_another_configuration_or_other_data_is_refused(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    other = replace(CONFIG, optimizer=replace(CONFIG.optimizer, lr=0.1))
    with pytest.raises(ConfigError, match=r"--lr: 0\.005, now 0\.1"):
        run(data, finished, other)
    draw_dataset(tmp_path / "data", train_images=9, test_images=4)
    with pytest.raises(
        ConfigError, match="have changed since the run began: 14 images then, 13 now"
    ):
        run(tmp_path / "data", finished)


def test_one_image_at_a_time_is_not_normalised(data: Path, tmp_path: Path) -> None:
    alone = replace(CONFIG, network="ssd300-lite", run=replace(CONFIG.run, batch_size=1))
    with pytest.raises(ConfigError, match="leaves one image at a time"):
        run(data, tmp_path / "run", alone)
    assert not (tmp_path / "run").exists()


def test_one_image_in_each_process_may_be_normalised_together() -> None:
    cpu, two = torch.device("cpu"), replace(CONFIG.run, batch_size=2, sync_batch_norm=True)
    config = replace(CONFIG, network="ssd300-lite", run=two)
    shape = network_shape(config, 2)
    check_shares(config, shape, Processes(0, 2, cpu))
    for refused, processes in (
        (replace(two, batch_size=1), 1),
        (replace(two, sync_batch_norm=False), 2),
    ):
        with pytest.raises(ConfigError, match="leaves one image at a time"):
            check_shares(replace(config, run=refused), shape, Processes(0, processes, cpu))


def test_workers_and_checkpoints_may_change_on_resume(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "other"
    with monkeypatch.context() as patch:
        cut_after(patch, 7)
        with pytest.raises(PowerCutError):
            run(data, out)
    run(data, out, replace(CONFIG, run=replace(CONFIG.run, workers=2, checkpoint_every=1)))
    assert digests(out) == digests(finished)


def test_a_run_on_resident_images_goes_on_with_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with the other pipeline's pixels."""
    # Tables of colours take a CPU longer than this run.
    plain = replace(
        CONFIG,
        augmentation=AugmentationConfig(distort=False),
        run=replace(CONFIG.run, workers=0, validate_every=12, evaluate_every=12),
    )
    config = replace(plain, run=replace(plain.run, pipeline="cuda"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert "decoded 10 of 10 images" in run(data, whole, config)
    with monkeypatch.context() as patch:
        cut_after(patch, 7)
        with pytest.raises(PowerCutError):
            run(data, cut, config)
    with pytest.raises(ConfigError, match="--pipeline: cuda, now cpu"):
        run(data, cut, plain)
    run(data, cut, replace(config, run=replace(config.run, workers=2)))
    assert digests(cut) == digests(whole)


def test_a_gpu_without_enough_memory_is_said_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(ConfigError, match=r"ran out of memory \(CUDA out .*--accumulate"):
        run(data, tmp_path / "run")


def test_who_interrupts_while_images_are_decoded_waits_for_no_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "prepare", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Learner, "step", None)
        with pytest.raises(Interrupted) as caught:
            run(data, out)
    assert caught.value.step == 0
    run(data, out)
    assert steps_of(out, "train") == [3, 6, 9, 12]


def test_rates_are_of_the_steps_since_the_run_went_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 10, above_lr=0.00004)
    often = replace(CONFIG.run, log_every=2, evaluate_every=12, on_nonfinite="rollback")
    run(data, tmp_path / "run", replace(CONFIG, run=often))
    text = (tmp_path / "run" / "timings.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 6, 8, 10, 12]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_a_folder_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(StorageError, match="is in use by process"):
        run(data, tmp_path / "run")


def test_nothing_is_written_below_the_dataset(data: Path, finished: Path) -> None:
    files = sorted(path.name for path in data.rglob("*") if path.is_file())
    expected = 14 * 2 + 2 + 1  # pictures and annotations, two splits, the mark of completeness
    assert len(files) == expected


def test_the_command_line_s_figures_are_the_milestone_s(data: Path, finished: Path) -> None:
    record = json.loads((finished / "evaluations" / "step-00000012.json").read_text())
    metrics = evaluate_model(
        finished, which="last", data=None, split=None, on_bad=None, device="cpu", workers=0
    )
    assert metrics == {name: record[name] for name in metrics}


def test_an_evaluation_is_the_same_with_any_number_of_workers(data: Path, finished: Path) -> None:
    alone, *others = (
        evaluate_model(
            finished, which="last", data=data, split=None, on_bad=None, device="cpu", workers=count
        )
        for count in (0, 1, 2, -1)
    )
    assert all(other == alone for other in others)
    with pytest.raises(ConfigError, match="workers is -2, but it must lie in"):
        evaluate_model(
            finished, which="last", data=data, split=None, on_bad=None, device="cpu", workers=-2
        )


def test_weights_alone_are_evaluated_where_one_says_on_what(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((finished / "evaluations" / "step-00000012.json").read_text())
    facts = finished / "run.json"
    facts.write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json: does not name the run.s dataset.*--data"):
        evaluate_model(
            finished, which="last", data=None, split=None, on_bad=None, device="cpu", workers=0
        )
    alone = tmp_path / "weights"
    alone.write_bytes(find_weights(finished).read_bytes())
    with pytest.raises(ConfigError, match="--data and --split"):
        evaluate_model(
            alone, which="last", data=data, split=None, on_bad=None, device="cpu", workers=0
        )
    # By itself the arithmetic is that of the hardware.
    monkeypatch.setattr("multibox.commands.evaluate.compute_dtype", lambda *_: torch.float32)
    metrics = evaluate_model(
        alone, which="last", data=data, split="2007:test", on_bad=None, device="cpu", workers=0
    )
    assert metrics == {name: record[name] for name in metrics}


def test_the_default_boxes_that_are_asked_for_are_trained_judged_and_kept(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(data, out, replace(CONFIG, default_boxes="coco"))
    weights = read_weights(find_weights(out))
    assert weights.traits == Traits(pixel_scale=1 / 64, scales="coco")
    network = load_network(weights, torch.device("cpu"))
    assert torch.equal(network.default_boxes, default_boxes(SMALLER, (SIDE, SIDE)))
    test_set = read_voc(data, "test", classes=weights.classes)
    examples = PlainExamples(test_set.annotations, (SIDE, SIDE))
    (batch,) = batches(examples, [[0, 1, 2, 3]], workers=0, pin_memory=False)
    matches = match(network.default_boxes, without_difficult(batch.targets), TINY.variances)
    with torch.inference_mode():
        output = network(batch.images)
    losses = multibox_loss(output, matches, (matches.classes > 0).sum().float())
    line = [line for line in journal(out) if line["kind"] == "validation"][-1]
    assert line["localization"] == pytest.approx(losses.localization.item(), rel=1e-4)
    assert line["confidence"] == pytest.approx(losses.confidence.item(), rel=1e-4)
    request = Request("tiny", CONFIG, data, tmp_path / "more", out, "none")
    said = io.StringIO()
    train(request, Console(file=said, width=80))
    assert "trained with the default boxes for coco" in said.getvalue().replace("\n", " ")
    with pytest.raises(ConfigError, match="ssd7 has no default boxes 'coco'"):
        run(data, tmp_path / "none", replace(CONFIG, network="ssd7", default_boxes="coco"))


def test_fitted_default_boxes_are_trained_kept_and_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = replace(CONFIG, fit_boxes=True), tmp_path / "run"
    said = run(data, out, config)
    assert re.search(r"Default boxes fitted to \d+ objects: ", said)
    weights = read_weights(find_weights(out))
    fitted = weights.traits.fitted
    assert fitted
    network = load_network(weights, torch.device("cpu"))
    assert torch.equal(network.default_boxes, default_boxes(fitted, (SIDE, SIDE)))
    found = evaluate_model(
        out, which="last", data=None, split=None, on_bad=None, device="cpu", workers=0
    )
    record = json.loads((out / "evaluations/step-00000012.json").read_text())
    assert found == {name: record[name] for name in found}

    again = tmp_path / "again"
    for calls in (8, 2):
        with monkeypatch.context() as patch:
            cut_after(patch, calls)
            with pytest.raises(PowerCutError):
                run(data, again, config)
    run(data, again, config)
    assert digests(again) == digests(out)

    with pytest.raises(ConfigError, match="--fit-boxes: True, now False"):
        run(data, out)
    with monkeypatch.context() as patch:
        other = (fitted[0]._replace(min_size_px=fitted[0].min_size_px - 1), *fitted[1:])
        patch.setattr("multibox.commands.train.fitted_levels", lambda *_: other)
        with pytest.raises(ConfigError, match="fitted_boxes"):
            run(data, out, config)

    request = Request("tiny", CONFIG, data, tmp_path / "more", out, "none")
    heard = io.StringIO()
    train(request, Console(file=heard, width=80))
    assert "trained with the default boxes fitted to data" in heard.getvalue().replace("\n", " ")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a run that reads its data."""

    def refuse(*_: object) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr("multibox.commands.train.read_datasets", refuse)


@pytest.mark.usefixtures("unread")
def test_what_cannot_be_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    request = Request("tiny", CONFIG, tmp_path, tmp_path.parent / "run", None, "none")
    boxes = replace(CONFIG, network="ssd7", default_boxes="coco")
    for refused, reason in (
        (request._replace(config=boxes), "ssd7 has no default boxes 'coco'"),
        (request._replace(init=tmp_path / "none"), "none: does not exist"),
        (request._replace(decoded_cache_gib=-1.0), "decoded_cache_gib is -1.0, but it must be"),
    ):
        with pytest.raises(MultiboxError, match=reason):
            train(refused, Console(quiet=True))


@pytest.fixture
def begun(data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A run that began with `--init`, and was cut after its eighth step."""
    init = tmp_path / "init.safetensors"
    init.write_bytes(find_weights(finished).read_bytes())
    request = Request("tiny", CONFIG, data, tmp_path / "begun", init, "none")
    with monkeypatch.context() as patch:
        cut_after(patch, 8)
        with pytest.raises(PowerCutError):
            train(request, Console(quiet=True))
    return request


@pytest.mark.parametrize("there", [True, False])
def test_a_run_is_resumed_without_the_weights_that_it_began_with(
    begun: Request, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = begun._replace(out=begun.out.parent / "unbroken")
    train(unbroken, Console(quiet=True))
    if not there:
        begun.init.unlink()
    monkeypatch.delattr("multibox.commands.starting_weights.read_weights")
    said = io.StringIO()
    train(begun, Console(file=said, width=80))
    assert ("does not exist. The run does not need it" in said.getvalue()) != there
    assert digests(begun.out) == digests(unbroken.out)


def test_a_run_is_not_resumed_with_other_initial_weights(begun: Request, finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_digest: \w+, now None"):
        train(begun._replace(init=None), Console(quiet=True))
    other = find_weights(finished, "10")
    with pytest.raises(ConfigError, match=r"init_digest: \w+, now \w+\)"):
        train(begun._replace(init=other), Console(quiet=True))
    never = Request("tiny", CONFIG, begun.data, finished, begun.out / "none", "none")
    with pytest.raises(WeightsError, match="does not exist"):
        train(never, Console(quiet=True))


def test_the_recipe_of_ssd7_trains_and_its_weights_find_things(data: Path, tmp_path: Path) -> None:
    recipe = ssd7()
    config = replace(
        recipe,
        schedule=replace(recipe.schedule, steps=2),
        run=replace(CONFIG.run, batch_size=2, log_every=1),
    )
    run(data, tmp_path / "run", config)
    lines = [line for line in journal(tmp_path / "run") if "loss" in line]
    assert [line["kind"] for line in lines] == ["train", "train", "validation"]
    assert all(0 < line["loss"] < 1000 and line["positives"] > 0 for line in lines[:2])
    detector = Detector.open(tmp_path / "run", device="cpu")
    picture = read_voc(data, "test").annotations[0].image_path
    assert detector(picture, score_threshold=0.0)


def test_a_milestone_s_files_can_be_evaluated(data: Path, finished: Path) -> None:
    record = json.loads((finished / "evaluations" / "step-00000012.json").read_text())
    assert record["split"] == "2007:test"
    folder = finished / "evaluations" / "step-00000012"
    metrics, missing = evaluate_results(folder, data=data, split=record["split"])
    assert missing == []
    # The files have whole pixels, so that a hit or two may become a miss.
    assert metrics["voc12"]["mAP"] == pytest.approx(record["voc12"]["mAP"], abs=0.03)
    assert record["voc12"]["mAP"] > 0


def test_the_report_is_written(finished: Path) -> None:
    page = write_report(finished).read_text()
    assert "training summary" in page
