"""Training and serving of LeRobot's policies, whichever `policies/lerobot_*` they belong to."""
