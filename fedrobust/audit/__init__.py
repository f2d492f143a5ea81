"""Proof of what a run computed: its signed log, its seal, and the check that the run's folder fits them."""
