"""Episodes: storage, selection, clips and streaming."""
