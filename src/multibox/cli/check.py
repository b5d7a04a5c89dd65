"""Runs the verb `check`: prints the faults of a dataset, or the doubtful labels of a run."""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibox.cli.arguments import CheckArguments, refuse_unused
from multibox.cli.printing import print_result, printing, say
from multibox.commands.check import check, fix_summary, print_check
from multibox.commands.check_labels import FOLDER, check_labels, is_run
from multibox.data.check.fixed_copy import RECORD
from multibox.errors import DataError


def run_check(verb: CheckArguments, console: Console) -> int:
    """Returns the exit status. It is 3 if the dataset has a fault, or with `--strict` a warning.

    Raises:
        MultiboxError: The dataset or the run cannot be read, or an option has no effect.
    """
    if is_run(verb.data):
        return _check_labels(verb)
    refuse_unused("a dataset", {"--runs": bool(verb.runs)})
    found = check(
        verb.data,
        console,
        splits=verb.splits,
        classes=verb.classes,
        network=verb.network,
        fix=verb.fix,
    )
    if verb.json:
        print_result(json.dumps(found.as_json()))
    else:
        with printing():
            print_check(found, Console(), examples=max(1, verb.examples))
        if verb.fix is not None:
            say(f"{found.changes} changes are in {verb.fix / RECORD}", console)
            say(fix_summary(found), console)
    counting = found.count("fault") + verb.strict * found.count("warning")
    return DataError.exit_code if counting else 0


def _check_labels(verb: CheckArguments) -> int:
    unused = {"--splits": bool(verb.splits), "--classes": bool(verb.classes)}
    unused |= {"--network": verb.network is not None, "--fix": verb.fix is not None}
    refuse_unused("a run", unused | {"--strict": verb.strict})
    found = check_labels([verb.data, *verb.runs])
    if verb.json:
        print_result(json.dumps([doubt.as_json() for doubt in found]))
        return 0
    table = Table("kind", "count", "examples")
    for kind in dict.fromkeys(doubt.kind for doubt in found):
        of_kind = [doubt for doubt in found if doubt.kind == kind]
        shown = [
            f"{doubt.image.image_path.name}: {doubt.describe()}"
            for doubt in of_kind[: max(1, verb.examples)]
        ]
        table.add_row(kind, str(len(of_kind)), Text("\n".join(shown), overflow="fold"))
    with printing():
        Console().print(table)
    print_result(verb.data / FOLDER / "index.html")
    return 0
