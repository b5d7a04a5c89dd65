"""Runs the verb `bench`: prints how long each part of the work takes."""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from multibox.cli.arguments import BenchArguments, refuse_unused
from multibox.cli.printing import print_result, printing
from multibox.commands.bench.bench import bench, bench_exported
from multibox.errors import ConfigError
from multibox.export.runtimes import is_exported
from multibox.recipes import RECIPES


def run_bench(verb: BenchArguments) -> None:
    """Prints a table, or with `--json` an object.

    Raises:
        MultiboxError: The recipe is unknown, or an option has no effect.
    """
    exported = verb.part == "predict" and is_exported(Path(verb.recipe))
    if verb.recipe not in RECIPES and not exported:
        raise ConfigError(
            f"no recipe is called {verb.recipe!r}", remedy=f"Use one of {', '.join(RECIPES)}"
        )
    part = verb.part
    unused = {
        "--data": verb.data is not None and part not in ("data", "predict"),
        "--batch-size": verb.batch_size is not None and part != "step",
        "--compile": verb.compile and part != "step",
        "--device": verb.device != "auto" and (part == "evaluate" or exported),
    }
    refuse_unused(f"bench {part}", unused)
    if exported:
        figures = bench_exported(Path(verb.recipe), data=verb.data)
    else:
        config = RECIPES[verb.recipe]()
        size = config.run.batch_size if verb.batch_size is None else verb.batch_size
        run = replace(config.run, batch_size=size, compile=verb.compile)
        config = replace(config, run=run)
        figures = bench(verb.part, config, data=verb.data, device=verb.device)
    if verb.json:
        rows = [figure._asdict() | {"images_per_second": figure.per_second} for figure in figures]
        print_result(json.dumps({"part": verb.part, "recipe": verb.recipe, "figures": rows}))
        return
    table = Table("work", "ms", "images/s", "rate beside")
    for figure in figures:
        beside = "" if figure.ratio is None else f"{figure.ratio:.2f} of {figure.beside}"
        ms, rate = f"{1000 * figure.seconds:.1f}", f"{figure.per_second:.1f}"
        table.add_row(figure.name, ms, rate, beside)
    with printing():
        Console().print(table)
