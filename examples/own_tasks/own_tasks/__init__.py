"""Tasks for demoscale: an own one of robosuite, eight around its cube, and one of gymnasium."""
