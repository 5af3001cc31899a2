"""How training ends: in whole numbers, and with tables fitted to what the coder meets."""
