"""Serves a checkpoint of LeRobot's policy `act`."""

from lerobot_common.serve import serve_checkpoint

if __name__ == "__main__":
    serve_checkpoint("act")
