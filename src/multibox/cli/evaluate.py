"""Runs the verb `evaluate`: prints the average precision of each class."""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibox.cli.arguments import EvaluateArguments, refuse_unused
from multibox.cli.printing import print_result, printing, say
from multibox.commands.evaluate import evaluate_model, evaluate_results
from multibox.errors import ConfigError, one_line


def run_evaluate(verb: EvaluateArguments, console: Console) -> None:
    """Prints a table, or with `--json` an object.

    Raises:
        MultiboxError: The model or the dataset cannot be read, or an option has no effect.
    """
    if (verb.model is None) == (verb.results is None):
        raise ConfigError("give either a run or weights, or --results")
    if verb.results is not None:
        unused = {"--which": verb.which != "last", "--device": verb.device != "auto"}
        unused |= {"--on-bad": verb.on_bad is not None, "--workers": verb.workers != -1}
        refuse_unused("--results", unused)
    if verb.model is not None:

        def note_loss(reason: str, _seconds: float) -> None:
            say(f"note: {reason}; new ones take over", console)

        metrics = evaluate_model(
            verb.model,
            which=verb.which,
            data=verb.data,
            split=verb.split,
            on_bad=verb.on_bad,
            device=verb.device,
            workers=verb.workers,
            on_loss=note_loss,
        )
    else:
        if verb.data is None or verb.results is None:
            raise ConfigError("--results needs --data", remedy="Give the folder of the annotations")
        metrics, missing = evaluate_results(
            verb.results, data=verb.data, split=verb.split or "test"
        )
        for name in missing:
            say(
                f"There is no results file for {one_line(name)}; it counts as having no detections",
                console,
            )
    found = metrics[verb.metric]
    mean = found["AP"] if verb.metric == "coco" else found["mAP"]
    by_class = found["AP_by_class"] if verb.metric == "coco" else found["AP"]
    if verb.json:
        print_result(json.dumps({"metric": verb.metric, "mAP": mean, "AP": by_class}))
        return
    table = Table("class", f"AP ({verb.metric})")
    table.columns[0].overflow = "fold"
    for name, value in [*by_class.items(), ("mean", mean)]:
        # As `Text`, because [red] in a class name is not a style.
        table.add_row(Text(one_line(name)), "none" if value is None else f"{value:.4f}")
    with printing():
        Console().print(table)
