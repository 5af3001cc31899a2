"""Ways out: a compressed slide as a file of a kind that other programs open. `export.py` chooses among them."""
