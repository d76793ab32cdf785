"""Long runs in which processes are killed or never replaced, and nothing may be lost."""
