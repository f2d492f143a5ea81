"""What vouches for a run: its signed log, its seal, and whether what lies in its folder fits them."""
