#!/usr/bin/env bash
# Trains SSD300 on COCO 2017 on an empty machine with a GPU and Python 3.11 or newer.
# Run it in the folder of the project. To resume, run it again: every line continues where it stopped.
# `multibox reproduce ssd300-coco --yes` does the same for several seeds, and compares.
set -euo pipefail

python3 -m venv .venv
.venv/bin/pip install --constraint constraints.txt --editable .
source .venv/bin/activate

# 20.4 GB of images, which belong to Flickr users, and 553 MB of ImageNet weights (CC BY 4.0).
multibox download coco2017 --out data
multibox download vgg16-caffe-imagenet

# Exits with status 3, because two boxes of train2017 have no height (cocodataset/cocoapi#355).
multibox check data/coco2017 --splits train2017 val2017 || test $? -eq 3

# 400,000 steps of 32 images, evaluated on val2017 every 20,000 steps, without those two boxes.
multibox train ssd300-vgg16-coco --data data/coco2017 --out runs/ssd300-coco/seed-0 --init vgg16-caffe-imagenet --on-bad skip

# The average precision of each class by COCO's rules, and the page.
multibox evaluate runs/ssd300-coco/seed-0 --metric coco
multibox report runs/ssd300-coco/seed-0
