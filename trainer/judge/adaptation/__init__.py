"""Adaptation of a local teacher to a domain: continued pre-training, SFT on annotations, and DPO by a reward.

The three steps follow the first stage of arXiv 2510.11056, as far as it is public. They do not claim to replicate it. Each
step is optional. The result of a step is an adapter, or a whole model, that the next step can start from.
"""
