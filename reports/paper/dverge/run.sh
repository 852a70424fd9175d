#!/bin/sh
# The tables of README.md at the paper's scale: 3 ResNet-20, 200 epochs of the kit's 40,000 CIFAR-10 training images.
# From the repository's root, with a CUDA device and the kit in ../shared/kit or ROBUSTKIT_KIT. Killed and started again,
# it continues. Trains 6 plain networks (3 of them held out), DVERGE and DVERGE+AT; then measures with 1000 images.
set -eu
exec "${PYTHON:-python}" -m benchmarks.dverge --scale paper --device cuda "$@"
