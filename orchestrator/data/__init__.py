"""Episodes: stored, chosen, cut into clips, streamed."""
