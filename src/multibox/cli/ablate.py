"""Runs the verb `ablate`: prints the effect of each change."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibox.cli.arguments import AblateArguments
from multibox.cli.printing import printing
from multibox.commands.ablate import ablate


def run_ablate(verb: AblateArguments, console: Console) -> None:
    """Prints a table for each metric.

    Raises:
        MultiboxError: The table, the dataset or a run is unusable.
    """
    results = ablate(
        verb.table, verb.data, verb.out, seeds=verb.seeds, folds=verb.folds, console=console
    )
    for metric in ("voc07", "coco"):
        table = Table("change", "runs", f"mean AP ({metric})", "difference", "verdict")
        table.columns[0].overflow = "fold"
        for change, runs, mean, difference, error, verdict in results.effects(metric):
            beside = f"{difference:+.4f} ± {error:.4f}" if verdict else ""
            table.add_row(Text(change), str(runs), f"{mean:.4f}", beside, verdict)
        with printing():
            Console().print(table)
