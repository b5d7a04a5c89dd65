"""What `multibox` and `python -m multibox`, and with that torchrun, start."""

import io
import os
import signal
import sys


def main() -> int:
    """Runs this process's command line and returns its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Paths are printed as the bytes that they are on the disk.
        sys.stdout.reconfigure(errors="surrogateescape")
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain:
        # Loading PyTorch takes seconds, in which Ctrl-C would print what is being loaded.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["predict"]:
        # While OpenMP's threads wait actively, those that decode and write have no core. It is read
        # when PyTorch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from multibox.cli.main import main as run

    if plain:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
