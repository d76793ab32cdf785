"""Two tasks for demoscale: an own one of robosuite, and one of gymnasium."""
