"""Trains LeRobot's policy `smolvla`."""

from lerobot_common.train import train

if __name__ == "__main__":
    train("smolvla")
