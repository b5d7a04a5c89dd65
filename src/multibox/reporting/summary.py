"""Sentences on a run: what it is, what its result is, and how the result came about."""

from multibox.errors import counted
from multibox.reporting import tables, text
from multibox.reporting.record import METRICS, Evaluation, Record


def result(record: Record) -> Evaluation | None:
    """Returns the evaluation that is the result so far: of the test split, or else the last one."""
    return record.test or (record.evaluations[-1] if record.evaluations else None)


def summary(record: Record) -> list[str]:
    """Returns sentences on the run and its result, which is never the best of several."""
    about, every = record.about, record.evaluations
    done = f"{record.last_step:,} of {about.planned_steps:,} steps"
    classes = f"{len(about.classes)} class{'' if len(about.classes) == 1 else 'es'}"
    trained = (
        f"{about.network}, trained on {about.train.name} "
        f"({counted(about.train.images, 'image')}, {classes}) for {done}"
    )
    if not every:
        return [f"{trained}, has not been evaluated yet."]
    if record.test:
        return [f"{trained}.", *_test_summary(record, record.test)]
    last = every[-1]
    best = tables.best_evaluation(every, last.metric)
    found = (
        f"{trained}, reaches {_named_mean(last)} on {about.validation.name} "
        f"({_contents(last)}) at step {last.step:,}."
    )
    stopped = stopped_early(record)
    if last.step < about.planned_steps and not stopped:
        status = "The run is not complete; this is its latest evaluation."
    elif not has_test_split(record):
        status = (
            "There is no test split, so this result is optimistic: decisions were made on the same "
            "images."
        )
    else:
        status = "These are the weights of the last step; nothing was chosen on the test images."
    if stopped:
        status = f"The run was stopped early by its patience. {status}"
    if record.config["schedule"]["schedule"] == "plateau":
        status += " Only the learning rate was lowered by their loss."
    if len(every) == 1:
        return [found, status]
    if best.step == last.step:
        return [found, status, "No earlier evaluation was better."]
    picked = (
        f"The best evaluation was at step {best.step:,} with {_named_mean(best)}; it was "
        "chosen on these images, so it is not reported as the result."
    )
    return [found, status, picked]


def stopped_early(record: Record) -> bool:
    """Whether a run ended by its patience: so many evaluations after the best one."""
    every, patience = record.evaluations, int(record.config["run"]["patience"])
    if not every or not patience:
        return False
    best = tables.best_evaluation(every, every[-1].metric)
    return sum(e.step > best.step for e in every) >= patience


def _test_summary(record: Record, test: Evaluation) -> list[str]:
    about, weights = record.about, record.config["run"]["test_weights"]
    found = (
        f"It reaches {_named_mean(test)} on {about.test.name} ({_contents(test)}), "
        f"with the weights of step {test.step:,}."
    )
    honest = (
        f"These images were evaluated once, with the {weights} weights, as declared before "
        f"training. Everything else was decided on {about.validation.name} "
        f"({counted(about.validation.images, 'image')})."
    )
    if record.last_step < about.planned_steps:
        return [found, "The run was stopped early by its patience.", honest]
    return [found, honest]


def _contents(evaluation: Evaluation) -> str:
    return f"{counted(evaluation.images, 'image')}, {counted(evaluation.objects, 'object')}"


def has_test_split(record: Record) -> bool:
    """Whether there are images for the result alone, or a test split with both roles."""
    data = record.config["data"]
    drawn = data.get("split", "").split("/")
    return len(drawn) > 2 if drawn != [""] else bool(data["test_split"])


def title(record: Record) -> str:
    """Returns the recipe, or the run's name if no recipe was chosen."""
    recipe = record.about.recipe
    return record.folder.resolve().name if recipe == "auto" else recipe


def split_sentences(record: Record) -> list[str]:
    """Returns a sentence for each split of the run."""
    about = record.about
    splits = {"Training": about.train}
    if has_test_split(record):
        splits |= {"Validation": about.validation} if about.validation != about.test else {}
        splits["Test"] = about.test
    else:
        splits["Validation"] = about.validation
    sentences = [
        f"{role} on {split.name}: {counted(split.images, 'image')}, "
        f"{counted(split.skipped, 'fault')} skipped."
        for role, split in splits.items()
    ]
    notes = dict.fromkeys(note for split in splits.values() for note in split.notes)
    return [*sentences, *(f"Note: {note}." for note in notes)]


def _named_mean(evaluation: Evaluation) -> str:
    kind = "COCO AP" if evaluation.metric == "coco" else f"mAP ({METRICS[evaluation.metric]})"
    return f"{text.decimals(evaluation.mean[evaluation.metric])} {kind}"
