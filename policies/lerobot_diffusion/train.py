"""Trains LeRobot's policy `diffusion`."""

from lerobot_common.train import train

if __name__ == "__main__":
    train("diffusion")
