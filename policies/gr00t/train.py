"""Trains LeRobot's policy `groot`."""

from lerobot_common.train import train

if __name__ == "__main__":
    train("groot")
