"""Runs the verb `predict`: reads its options, and prints what was detected and what was refused."""

import sys

from rich.console import Console

from multibox.cli.arguments import PredictArguments
from multibox.cli.printing import refuse, say
from multibox.commands.predict import (
    Many,
    Options,
    Predicted,
    Save,
    no_addresses,
    predict,
    predict_many,
)
from multibox.commands.prediction.items import Fetch
from multibox.commands.prediction.selection import parse_thresholds
from multibox.commands.prediction.sources import STANDARD_INPUT, Listing
from multibox.detector import Detector
from multibox.errors import ConfigError, DataError, counted


def run_predict(verb: PredictArguments, console: Console) -> int:
    """Returns the exit status. It is 3 if an image cannot be read.

    Raises:
        MultiboxError: Nothing can be detected or written.
    """
    save = _formats(verb)
    if save != ("none",) and verb.out is None:
        raise ConfigError("there is no folder for the results", remedy="Add --out or --save none")
    options = Options(
        verb.score_threshold,
        verb.classes,
        parse_thresholds(verb.class_thresholds),
        save,
        verb.batch_size,
        verb.flip,
        verb.max_frames,
    )
    listing = Listing(verb.sources, verb.recursive, sys.stdin if "-" in verb.sources else ())
    detector = Detector.open(verb.model, which=verb.which, device=verb.device)
    for note in detector.notes:
        say(f"note: {note}", console)
    fetch = _fetch(verb.sources)
    if save == ("parquet",) and verb.out is not None:
        many = Many(
            verb.model,
            verb.which,
            verb.device,
            verb.shard or "1/1",
            verb.chunk_size,
            verb.engine,
        )
        found = predict_many(
            detector, listing, many, out=verb.out, options=options, fetch=fetch, console=console
        )
    else:
        found = predict(
            detector, listing, out=verb.out, options=options, fetch=fetch, console=console
        )
    return _report(verb, found, console)


def _report(verb: PredictArguments, found: Predicted, console: Console) -> int:
    for refusal in found.refusals:
        refuse(refusal, console)
    if found.refused > len(found.refusals):
        say(f"error: {counted(found.refused, 'image')} in all cannot be read", console)
    text = f"{counted(found.images, 'image')} with {counted(found.objects, 'object')}"
    say(text if verb.out is None else f"{text}, written to {verb.out}", console)
    say(found.score_threshold, console)
    return DataError.exit_code if found.refused else 0


def _formats(verb: PredictArguments) -> tuple[Save, ...]:
    """Returns what is written, after checking that all options have an effect."""
    many = verb.shard is not None or verb.engine == "ray"
    save = verb.save or (("parquet",) if many else ("json", "images"))
    if "parquet" in save and len(save) > 1:
        raise ConfigError("parquet cannot be combined with other formats", remedy="Use it alone")
    unused = {
        "--shard": verb.shard is not None and save != ("parquet",),
        "--engine ray": verb.engine == "ray" and save != ("parquet",),
        "--chunk-size": verb.chunk_size != 512 and save != ("parquet",),
        "--max-frames": verb.max_frames is not None and save == ("parquet",),
    }
    for option, given in unused.items():
        if given:
            raise ConfigError(f"{option} has no effect with --save {' '.join(save)}")
    return save


def _fetch(words: tuple[str, ...]) -> Fetch:
    """Returns a reader of http(s) addresses if the command line may contain one."""
    asked = any(word == STANDARD_INPUT or word.lower().startswith("http") for word in words)
    if not asked:
        return no_addresses
    # Imported here, so that no other command loads code that opens connections.
    from multibox.download.address import read_address

    return read_address
