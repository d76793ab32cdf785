"""Trains LeRobot's policy `act`."""

from lerobot_common.train import train

if __name__ == "__main__":
    train("act")
