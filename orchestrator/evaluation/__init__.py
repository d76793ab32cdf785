"""Scores: scorer, outcome ledger, protocol, policy server, video metrics."""
