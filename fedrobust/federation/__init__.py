"""Federations on Ray: the actors that take part, how updates reach the coordinator, and the rounds.

What an actor does is a plain class, such as `ClientHost` or `Coordinator`; `pool.py` turns it into an actor.
"""
