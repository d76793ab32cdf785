"""Quality checks of demonstrations before GPU-hours are spent on them: `demoscale data check`."""
