"""Says in sentences how good a result is, what is wrong with it, and what to do next.

Each sentence follows from figures by a rule that is written here. A rule says nothing if its
figures are missing.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from multibox.errors import counted
from multibox.reporting.text import decimals

NOTICEABLE = 0.01
"""Average precision that an error has to cost before it is named."""

FEW_OBJECTS = 50
"""A class with fewer training objects is called rare."""

NOT_REACHED = 0.2
"""Share of objects without a default box from which the default boxes are named."""

OVERFITTING = 1.5, 1.05
"""Validation loss by training loss, and by its own minimum, from which a run has overfitted."""

DOUBTFUL = 0.02
"""Confident detections without an annotation, by objects, from which annotations are doubted."""

LEAST_OBJECTS = 10
"""Least number of objects of a group that a sentence may speak of."""


class Found(NamedTuple):
    """The numbers of objects of a group that are found and that are not."""

    found: int
    missed: int

    @property
    def recall(self) -> float:
        """Share that is found, 0..1; NaN without objects."""
        return self.found / (self.found + self.missed) if self.found + self.missed else math.nan


class Confused(NamedTuple):
    """A class that is detected as another one, and how often."""

    annotated: str
    detected: str
    times: int


class Facts(NamedTuple):
    """The figures that the sentences follow from.

    Attributes:
        run: The run's folder as it is typed.
        metric: Name of the metric of `mean`.
        mean: Mean average precision of the result, 0..1; NaN if there is none.
        interval: Limits of the middle 95 % of resampled images; NaN if unknown.
        deviation: Standard deviation of the resamples; NaN if unknown.
        images: Number of images of the result.
        last_step: Number of completed steps.
        planned_steps: Number of configured steps.
        stopped_early: Whether the run ended before them by its patience.
        means: Mean average precisions of all evaluations during training.
        training_loss: The last one; NaN if there is none.
        validation_losses: All of them.
        costs: Average precision that each kind of error costs.
        confused: The classes that are most often confused, or None.
        small: Objects below 32 pixels.
        larger: All other objects.
        weakest: The class with the lowest average precision and its value, or None.
        unannotated: Number of confident detections without an annotation.
        objects: Number of objects of the result.
        forced: Share of the training objects that no default box overlaps by 0.5; NaN if unknown.
        fitted: Whether the default boxes were fitted.
        rarest: The class with the fewest training objects and their number, or None.
    """

    run: str
    metric: str = ""
    mean: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    deviation: float = math.nan
    images: int = 0
    last_step: int = 0
    planned_steps: int = 0
    stopped_early: bool = False
    means: tuple[float, ...] = ()
    training_loss: float = math.nan
    validation_losses: tuple[float, ...] = ()
    costs: Mapping[str, float] = {}
    confused: Confused | None = None
    small: Found = Found(0, 0)
    larger: Found = Found(0, 0)
    weakest: tuple[str, float] | None = None
    unannotated: int = 0
    objects: int = 0
    forced: float = math.nan
    fitted: bool = False
    rarest: tuple[str, int] | None = None


def how_good(facts: Facts) -> str:
    """Returns a sentence on the result and its spread."""
    if not math.isfinite(facts.mean):
        return "There is no result yet."
    result = f"The {facts.metric} is {decimals(facts.mean, places=3)}"
    low, high = facts.interval
    if not math.isfinite(low):
        return f"{result} on {counted(facts.images, 'image')}."
    return (
        f"{result} on {counted(facts.images, 'image')}; with as many other images of the same kind "
        f"it would be {decimals(low, places=3)} to {decimals(high, places=3)} in 95 of 100 cases."
    )


_WRONG = {
    "classification": "objects that are found with the wrong class",
    "localization": "boxes that are not accurate enough",
    "both": "detections with a wrong class and an inaccurate box",
    "duplicate": "second detections of the same object",
    "background": "detections where nothing is annotated",
    "missed": "objects that are not found",
}


def what_is_wrong(facts: Facts) -> str:
    """Returns a sentence on the costliest errors, and on small objects if they are missed."""
    if not facts.costs:
        return "The errors are not known."
    kind = max(facts.costs, key=lambda name: facts.costs[name])
    if facts.costs[kind] < NOTICEABLE:
        wrong = f"No kind of error costs {NOTICEABLE} AP or more"
    else:
        cost = decimals(facts.costs[kind], places=3)
        wrong = f"The costliest errors are {_WRONG[kind]}: without them, AP would be {cost} higher"
        if kind == "classification" and facts.confused:
            annotated, detected, times = facts.confused
            wrong += f"; most often {annotated} is taken for {detected} ({times} times)"
    if _misses_small(facts):
        wrong += (
            f". It finds {facts.small.recall:.0%} of the objects below 32 pixels, and "
            f"{facts.larger.recall:.0%} of the others"
        )
    return f"{wrong}."


def _misses_small(facts: Facts) -> bool:
    small, larger = facts.small, facts.larger
    enough = min(sum(small), sum(larger)) >= LEAST_OBJECTS
    return enough and small.recall < 0.6 * larger.recall


def _finish(facts: Facts) -> str:
    if facts.stopped_early or facts.last_step >= facts.planned_steps:
        return ""
    done = f"{facts.last_step:,} of {facts.planned_steps:,} steps are done"
    return f"Let the run finish: {done}. Repeat the command that started it if it has stopped."


def _doubt_annotations(facts: Facts) -> str:
    if facts.unannotated < max(5, DOUBTFUL * facts.objects):
        return ""
    return (
        f"Look at the {facts.unannotated:,} confident detections that are not annotated: if they "
        "are real objects, the annotations are incomplete. For the training images, use "
        f"`multibox check {facts.run}`."
    )


def _overfitting(facts: Facts) -> str:
    losses = [loss for loss in facts.validation_losses if math.isfinite(loss)]
    if not losses or not facts.training_loss > 0:
        return ""
    ratio, rise = losses[-1] / facts.training_loss, losses[-1] / min(losses)
    if ratio < OVERFITTING[0] or rise < OVERFITTING[1]:
        return ""
    return (
        f"Add training images: the validation loss is {ratio:.1f} times the training loss and "
        f"{rise - 1:.0%} above its minimum, so the network fits the training images too closely. "
        "Until then, stop earlier, with `--patience` or fewer `--steps`."
    )


def _train_longer(facts: Facts) -> str:
    if len(facts.means) < 2 or facts.stopped_early:
        return ""
    *earlier, before, last = facts.means
    step = last - before
    noise = facts.deviation if math.isfinite(facts.deviation) else 0.0
    # Differences between evaluations of the same images vary less than the result itself.
    if not (last >= max([before, *earlier]) and step > max(NOTICEABLE, noise / 4)):
        return ""
    return (
        f"Train longer: the last evaluation is the best one, and AP has risen by "
        f"{decimals(step, places=3)} since the one before. Start a new run with twice the "
        f"`--steps`."
    )


def _small_objects(facts: Facts) -> str:
    if not _misses_small(facts):
        return ""
    way = "a network with a larger input (`ssd512-vgg16`), or cut the images into parts"
    return f"Small objects are missed: use {way}."


def _default_boxes(facts: Facts) -> str:
    if facts.fitted or not facts.forced >= NOT_REACHED:
        return ""
    return (
        f"Fit the default boxes with `--fit-boxes`: none of them overlaps {facts.forced:.0%} of "
        "the training objects by half."
    )


def _rare_class(facts: Facts) -> str:
    if facts.rarest is None or facts.rarest[1] >= FEW_OBJECTS:
        return ""
    name, count = facts.rarest
    return f"Annotate more objects of {name}: there are only {counted(count, 'training object')}."


def _costliest(facts: Facts) -> str:
    if not facts.costs:
        return ""
    kind = max(facts.costs, key=lambda name: facts.costs[name])
    if facts.costs[kind] < NOTICEABLE:
        return ""
    weakest = (
        f", first of {facts.weakest[0]}, the class with the lowest AP" if facts.weakest else ""
    )
    return {
        "missed": f"Add training images of what is missed{weakest}.",
        "localization": "Look at the inaccurate boxes below: if the annotated boxes are drawn in "
        "different ways, agree on one and correct them.",
        "classification": "Look at the confused classes below: if the annotations do not tell "
        "them apart, correct them; otherwise add images that show the difference.",
        "both": "Look at these detections below: if they are real objects of other classes, "
        "annotate those classes.",
        "duplicate": "Look at the second detections below: if each shows another object, the "
        "annotations are incomplete.",
        "background": "Add training images that show what is taken for objects, without objects.",
    }[kind]


RULES: tuple[Callable[[Facts], str], ...] = (
    _finish,
    _doubt_annotations,
    _overfitting,
    _small_objects,
    _default_boxes,
    _train_longer,
    _rare_class,
    _costliest,
)
"""Each returns a sentence, or nothing if it does not apply. The first one is the most urgent."""


def what_next(facts: Facts) -> list[str]:
    """Returns the advice that applies, the most urgent first."""
    advice = [sentence for rule in RULES if (sentence := rule(facts))]
    return advice or ["None of the report's rules for advice applies to this run."]
