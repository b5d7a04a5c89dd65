#!/usr/bin/env bash
# Trains SSD300 on Pascal VOC 07+12 on an empty machine with a GPU and Python 3.11 or newer.
# Run it in the folder of the project. To resume, run it again: every line continues where it stopped.
# `multibox reproduce ssd300-voc0712 --yes` does the same for several seeds, and compares classes.
set -euo pipefail

python3 -m venv .venv
.venv/bin/pip install --constraint constraints.txt --editable .
source .venv/bin/activate

# 2.9 GB of images, which belong to Flickr users, and 553 MB of ImageNet weights (CC BY 4.0).
multibox download voc2007 voc2012 --out data
multibox download vgg16-caffe-imagenet

# Decodes every image and lists faults.
multibox check data/VOCdevkit --splits 2007:trainval 2012:trainval 2007:test

# 120,000 steps of 32 images, evaluated on VOC2007 test every 20,000 steps.
multibox train ssd300-vgg16-voc0712 --data data/VOCdevkit --out runs/ssd300-voc0712/seed-0 --init vgg16-caffe-imagenet

# The average precision of each class by the rules of VOC2007, and the page beside ssd_keras.
multibox evaluate runs/ssd300-voc0712/seed-0 --metric voc07
multibox report runs/ssd300-voc0712/seed-0 --beside ssd-keras-voc0712
