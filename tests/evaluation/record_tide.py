"""Records what other implementations of TIDE compute: writes `tide.npz` beside this file.

Run it in an environment of its own, once for each implementation:

    python -m venv env && env/bin/pip install tidecv-light==1.0.2 hotcoco==1.3.0 pycocotools
    env/bin/python tests/evaluation/record_tide.py light hotcoco
    env/bin/pip uninstall -y tidecv-light && env/bin/pip install tidecv==1.0.1
    env/bin/python tests/evaluation/record_tide.py tidecv

With `problems` as the only argument it draws the random problems. With `bccd RUN` it adds the
detections of a run's evaluation of BCCD's test split as another problem; this needs multibox.

`<n>_detections` has columns image, class, score, x0, y0, x1, y1, and `<n>_objects` image, class,
x0, y0, x1, y1, both sorted by class. `<n>_<implementation>` has the mean average precision, the
costs of the six kinds in the order of `errors.KINDS`, the costs of false positives and false
negatives, and the number of errors of each kind. `<n>_tidecv_kinds` has the kind of each detection,
or -1, and `<n>_tidecv_missed` whether each object is missed.
"""

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("tide.npz")
NAMES = ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]


def draw(number: int) -> dict[str, np.ndarray]:
    """Objects, and detections near them and elsewhere. Odd problems have few distinct scores."""
    rng = np.random.default_rng(number)
    classes, images = 3 + number % 3, 10 + 2 * number
    objects, detections = [], []
    for image in range(images):
        for place in range(rng.integers(0, 8) if image >= classes else 1):
            # Every class has an object.
            label = image if image < classes else rng.integers(classes)
            corner, size = rng.integers(0, 80, 2), rng.integers(5, 60, 2)
            box = np.concatenate([corner, corner + size])
            objects.append([image, label, *box])
            # Crowded images exceed 100 detections.
            for _ in range(rng.integers(0, 60 if number % 5 == 4 and place < 5 else 5)):
                near = box + rng.integers(-1, 2, 4) * rng.integers(0, 12, 4)
                near[2:] = np.maximum(near[2:], near[:2] + 1)
                other = rng.integers(classes) if rng.random() < 0.25 else label
                detections.append([image, other, rng.random(), *near])
        for _ in range(rng.integers(0, 4)):
            corner, size = rng.integers(0, 100, 2), rng.integers(5, 40, 2)
            detections.append([image, rng.integers(classes), rng.random(), *corner, *corner + size])
    found, truth = np.array(detections, float), np.array(objects, float)
    if number % 2:
        found[:, 2] = np.ceil(found[:, 2] * 8) / 8
    return {
        "detections": found[np.argsort(found[:, 1], kind="stable")],
        "objects": truth[np.argsort(truth[:, 1], kind="stable")],
    }


def bccd(run: str) -> dict[str, np.ndarray]:
    from multibox.data.formats.layouts import read_dataset
    from multibox.evaluation.results import read_results
    from multibox.inference import objects_by_class

    data = Path(__file__).parents[3] / "shared/data/bccd"
    dataset = read_dataset(data, "test", images="ignore", on_bad="skip")
    (folder,) = (path for path in Path(run, "evaluations").iterdir() if path.is_dir())
    ids = [annotation.image_id for annotation in dataset.annotations]
    found = read_results(folder, split="test", classes=dataset.classes, image_ids=ids).detections
    truth = objects_by_class(dataset)
    detections = [
        np.column_stack([f.images, np.full(len(f.images), n), f.scores, f.boxes_px])
        for n, f in enumerate(found[name] for name in dataset.classes)
    ]
    objects = [
        np.column_stack([o.images, np.full(len(o.images), n), o.boxes_px])
        for n, o in enumerate(truth[name] for name in dataset.classes)
    ]
    assert not any(o.difficult.any() for o in truth.values())
    return {"detections": np.concatenate(detections), "objects": np.concatenate(objects)}


def tidecv(detections: np.ndarray, objects: np.ndarray, *, sizes: bool) -> dict[str, np.ndarray]:
    """Runs tidecv, to which boxes are given with sizes, or tidecv-light, with corners."""
    from tidecv import TIDE, Data
    from tidecv.errors import main_errors

    def form(box: np.ndarray) -> list[float]:
        return [*box[:2], *(box[2:] - box[:2])] if sizes else [*box]

    truth, found = Data("truth"), Data("found")
    # tidecv takes the images in this order, and leaves out those that are not named here.
    for image in np.unique(np.concatenate([detections[:, 0], objects[:, 0]])):
        truth.add_image(int(image), str(image))
    for image, label, *box in objects:
        truth.add_ground_truth(int(image), int(label), form(np.array(box)))
    for image, label, score, *box in detections:
        found.add_detection(int(image), int(label), score, form(np.array(box)))
    run = TIDE().evaluate(truth, found, mode=TIDE.BOX)
    kinds = [getattr(main_errors, kind) for kind in KINDS_OF_TIDECV]
    main, special = run.fix_main_errors(), run.fix_special_errors()
    figures = [run.ap, *(main[kind] for kind in kinds)]
    figures += [special[main_errors.FalsePositiveError], special[main_errors.FalseNegativeError]]
    by_detection, missed = np.full(len(detections), -1), np.zeros(len(objects), bool)
    for code, kind in enumerate(kinds):
        for error in run.error_dict[kind]:
            if kind is main_errors.MissedError:
                missed[error.gt["_id"]] = True
            else:
                by_detection[error.pred["_id"]] = code
    counts = [len(run.error_dict[kind]) for kind in kinds]
    figures = np.array([*np.array(figures) / 100, *counts])
    return {"": figures, "_kinds": by_detection.astype(np.int8), "_missed": missed}


KINDS_OF_TIDECV = ["ClassError", "BoxError", "OtherError", "DuplicateError", "BackgroundError"]
KINDS_OF_TIDECV.append("MissedError")


def hotcoco(detections: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    from hotcoco import COCO, COCOeval

    images = np.unique(np.concatenate([detections[:, 0], objects[:, 0]]))
    labels = np.unique(np.concatenate([detections[:, 1], objects[:, 1]]))

    def record(number: int, image: float, label: float, box: list[float]) -> dict:
        width, height = box[2] - box[0], box[3] - box[1]
        return {
            "id": number + 1,
            "image_id": int(image) + 1,
            "category_id": int(label) + 1,
            "bbox": [box[0], box[1], width, height],
            "area": width * height,
            "iscrowd": 0,
        }

    truth = COCO(
        {
            "images": [{"id": int(i) + 1, "width": 640, "height": 640} for i in images],
            "categories": [{"id": int(n) + 1, "name": str(n)} for n in labels],
            "annotations": [record(n, i, c, box) for n, (i, c, *box) in enumerate(objects)],
        }
    )
    found = truth.load_res(
        [record(n, i, c, box) | {"score": s} for n, (i, c, s, *box) in enumerate(detections)]
    )
    evaluation = COCOeval(truth, found.cap_detections_per_image(100), "bbox")
    evaluation.evaluate()
    result = evaluation.tide_errors()
    costs, counts = result["delta_ap"], result["counts"]
    figures = [result["ap_base"], *(costs[name] for name in [*NAMES, "FP", "FN"])]
    return {"": np.array([*figures, *(counts[name] for name in NAMES)])}


def main(arguments: list[str]) -> None:
    stored = dict(np.load(FILE)) if FILE.exists() else {}
    for name in arguments:
        if name == "problems":
            stored |= {f"{n}_{key}": table for n in range(20) for key, table in draw(n).items()}
        elif name == "bccd":
            tables = bccd(arguments[1])
            stored |= {f"bccd_{key}": table.astype(np.float32) for key, table in tables.items()}
            break
        else:
            for problem in [*map(str, range(20)), "bccd"]:
                tables = [stored[f"{problem}_{key}"] for key in ("detections", "objects")]
                tables = [table.astype(np.float64) for table in tables]
                match name:
                    case "hotcoco":
                        found = hotcoco(*tables)
                    case _:
                        found = tidecv(*tables, sizes=name == "tidecv")
                stored |= {f"{problem}_{name}{key}": table for key, table in found.items()}
    np.savez_compressed(FILE, **stored)


if __name__ == "__main__":
    main(sys.argv[1:])
