"""Runs the verb `serve`: opens the model, starts the server, and says where it is."""

import importlib.util

import numpy as np
from rich.console import Console

from multibox.cli.arguments import ServeArguments
from multibox.cli.printing import say
from multibox.commands.predict import Options, choose_detections
from multibox.detector import Detector
from multibox.errors import ConfigError, counted
from multibox.export.runtimes import is_exported
from multibox.processes.distributed import pick_device
from multibox.weights.files import find_weights

_PACKAGES = ("prometheus_client", "starlette", "uvicorn")
_MEBIBYTE = 1 << 20
_BATCH_SIZES = {"cpu": 4, "cuda": 32}


def run_serve(verb: ServeArguments, console: Console) -> None:
    """Answers requests until a signal comes.

    Raises:
        MultiboxError: The model cannot be opened, the port cannot be used, or a package is missing.
    """
    if not all(map(importlib.util.find_spec, _PACKAGES)):
        raise ConfigError(
            "the packages of the service are not installed",
            remedy="Run pip install 'multibox[serve]'",
        )
    # Imported here, because the packages may be absent, and no other verb needs them.
    from multibox.commands.service.application import (
        Service,
        Settings,
        check_settings,
        identify,
        is_loopback,
    )
    from multibox.commands.service.batching import Batcher, Limits
    from multibox.commands.service.metrics import Metrics
    from multibox.commands.service.server import listen, make_server

    exported = is_exported(verb.model)
    device = "cpu" if exported else pick_device(verb.device).type
    batch_size = _BATCH_SIZES[device] if verb.batch_size is None else verb.batch_size
    detector = Detector.open(verb.model, which=verb.which, device=verb.device)
    options = Options(verb.score_threshold, verb.classes, batch_size=batch_size)
    selection, threshold = choose_detections(detector, options)
    file = verb.model if exported else find_weights(verb.model, verb.which)
    settings = Settings(
        identify(verb.model, file),
        verb.host,
        selection.lowest,
        verb.classes,
        int(verb.max_mebibytes * _MEBIBYTE),
        verb.timeout,
    )
    check_settings(settings, verb.max_waiting, batch_size)
    with listen(verb.host, verb.port) as listening:
        # The first use of a network is slow, and shows whether a batch fits in memory.
        blank = detector.prepare(np.zeros((1, 1, 3), np.uint8))
        for size in {1, batch_size}:
            detector.detect_batch([blank] * size, score_threshold=0.5)
        metrics = Metrics()
        batcher = Batcher(detector, Limits(batch_size, verb.max_waiting), metrics)
        service = Service(detector, batcher, settings, metrics)
        server = make_server(
            service.application,
            timeout=verb.timeout,
            say=lambda line: say(line, console),
            access_log=verb.access_log,
        )
        for note in detector.notes:
            say(f"note: {note}", console)
        say(threshold, console)
        host, port = listening.getsockname()[:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        say(f"The service is at {place}. Ctrl-C ends it.", console)
        if not is_loopback(verb.host):
            say("Other machines can reach it, without a password.", console)
        server.run(sockets=[listening])
        batcher.close()
    say(f"Stopped. {counted(service.answered, 'image')} answered.", console)
