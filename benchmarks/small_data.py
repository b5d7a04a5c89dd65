"""Average precision and time of `ssd300-lite` on a small dataset, over several seeds.

python benchmarks/small_data.py FOLDER --seeds 3 --steps 700 --out runs/benchmark [--fit-boxes]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Prints a line per seed, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fit-boxes", action="store_true")
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        run = options.out / f"steps-{options.steps}-seed-{seed}"
        arguments = ["--data", options.data, "--out", run, "--steps", options.steps]
        arguments += ["--seed", seed, "--on-bad", "skip"]
        arguments += ["--fit-boxes"] if options.fit_boxes else []
        command = [sys.executable, "-m", "multibox", "train", "ssd300-lite"]
        subprocess.run([*command, *map(str, arguments)], check=True)
        lines = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
        for path in sorted((run / "evaluations").glob("step-*.json")):
            record = json.loads(path.read_text())
            before = [line for line in lines if line["step"] <= record["step"]]
            seconds = sum(line["seconds"] for line in before if line["kind"] == "train")
            everything = sum(line["seconds"] for line in before)
            by_class = {name: round(value, 3) for name, value in record["voc07"]["AP"].items()}
            print(
                f"seed {seed}, step {record['step']}: mAP {record['voc07']['mAP']:.4f} {by_class}, "
                f"{seconds:.0f} s of training, {everything:.0f} s with validation and checkpoints",
                flush=True,
            )
        found.append(record["voc07"]["mAP"])
    print(f"mean {statistics.mean(found):.4f} over {len(found)} seeds, lowest {min(found):.4f}")


if __name__ == "__main__":
    main()
