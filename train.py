"""`python train.py [overrides]`: the same as `effvit train [overrides]`."""

from effvit_train.cli import train

if __name__ == "__main__":
    train()
