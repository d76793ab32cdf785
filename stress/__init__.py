"""Long runs in which processes are killed or never replaced, and no result may be lost."""
