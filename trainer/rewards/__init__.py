"""Rewards: how much better the engine ranks a query with a candidate expansion than without it."""
