"""Runs the verb `train`: prints what multibox chose, and names the summary page."""

from pathlib import Path

from rich.console import Console

from multibox.cli.arguments import RecipeArguments
from multibox.cli.printing import print_result, say
from multibox.commands.automatic import AUTOMATIC, choose
from multibox.commands.report import write_report
from multibox.commands.train import Request, train
from multibox.errors import ConfigError
from multibox.recipes import RECIPES, scale_lr
from multibox.reporting.loggers import LoggerName


def run_train(verb: RecipeArguments, console: Console) -> None:
    """Trains, unless the command line asks only what would be done.

    Raises:
        MultiboxError: The dataset or the configuration is unusable, or the run failed.
        Interrupted: A signal ended the run after it was saved.
    """
    if verb.scale_lr and verb.recipe == AUTOMATIC:
        raise ConfigError("scale_lr needs a recipe", remedy="Name a recipe or leave out --scale-lr")
    name = verb.data.resolve()
    out = verb.out or Path("runs") / (name.stem if name.suffix.lower() == ".zip" else name.name)
    config = scale_lr(verb.config, RECIPES[verb.recipe]()) if verb.scale_lr else verb.config
    request = Request(
        verb.recipe, config, verb.data, out, verb.init, verb.licence, verb.decoded_cache_gib
    )
    chosen: dict[LoggerName, bool] = {
        "tensorboard": verb.tensorboard,
        "wandb": verb.wandb,
        "mlflow": verb.mlflow,
    }
    request = request._replace(loggers=tuple(name for name, used in chosen.items() if used))
    if verb.recipe == AUTOMATIC or verb.minutes is not None or verb.dry_run:
        request, lines = choose(request, verb.typed, minutes=verb.minutes, console=console)
        for subject, text in lines:
            say(f"{subject:11}{text}", console)
    if verb.dry_run:
        return
    train(request, console)
    if verb.recipe == AUTOMATIC:
        console.print("Summary page:", end=" ")
        print_result(write_report(out))
    else:
        say(f"Done: {out}. Summary: multibox report {out}", console)
