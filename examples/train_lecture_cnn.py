"""Trains the lecture's network with cnnfast and with plain torch side by side, on scikit-learn's digits.

    python examples/train_lecture_cnn.py --epochs 5

takes every option of `python -m cnnfast.train`.
"""

import sys

from cnnfast.distributed import leave
from cnnfast.train import main

if __name__ == "__main__":
    leave(main(["--backend", "both", "--data", "digits", *sys.argv[1:]]))
