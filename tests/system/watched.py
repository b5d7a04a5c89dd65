"""Runs command lines in one process that notes what it asks of the network and opens for writing.

    python watched.py FOLDER LINES    (a dataset's folder; a JSON list of command lines)

Its last line of output is JSON: each line's exit status, and what was noted. The hook is in place
before anything is imported and goes on in forked processes, whose notes come by the same pipe.
"""

import json
import os
import socket
import sys

_ADDRESSED = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.utime", "os.link")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_reading, _writing = os.pipe()
_folder = sys.argv[1]


def _watch(event: str, arguments: tuple) -> None:
    found = False
    if event in _ADDRESSED:
        # Loader processes talk over AF_UNIX.
        found = arguments[0].family in (socket.AF_INET, socket.AF_INET6)
    elif event.startswith(_NAMES):
        found = True
    elif event == "open" and isinstance(arguments[0], str | bytes):
        below = os.fsdecode(arguments[0]).startswith(f"{_folder}/")
        found = below and bool((arguments[2] or 0) & _WRITING)
    elif event.startswith(_CHANGES):
        found = any(str(value).startswith(_folder) for value in arguments)
    if found:
        os.write(
            _writing, f"{event} {arguments[1:] if event in _ADDRESSED else arguments}\n".encode()
        )


sys.addaudithook(_watch)

from multibox.cli.main import main  # noqa: E402
from multibox.commands.bench import data, timing  # noqa: E402
from multibox.commands.demo import demo  # noqa: E402
from multibox.commands.demo.dataset import draw_dataset  # noqa: E402

demo.STEPS = 2
data.SAMPLES, timing.RUNS = 32, 1
demo.draw_dataset = lambda folder: draw_dataset(folder, train_images=6, test_images=2)

if __name__ == "__main__":
    statuses = [main(line) for line in json.loads(sys.argv[2])]
    if json.loads(sys.argv[2]) == []:
        # That the watch sees what it is for.
        with socket.socket() as probe:
            probe.connect_ex(("127.0.0.1", 9))
        with open(f"{_folder}/probe", "w"):  # noqa: PTH123
            pass
    os.close(_writing)
    with os.fdopen(_reading) as pipe:
        print(json.dumps({"statuses": statuses, "noted": pipe.read().splitlines()}))
