"""Where training starts: at the Karhunen–Loève transform, or from a finished model."""
