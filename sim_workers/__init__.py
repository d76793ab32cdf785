"""Where it is tested: robosuite and numpy, no torch; Ray only in pool.py."""
