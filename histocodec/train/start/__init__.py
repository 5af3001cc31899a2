"""Where training starts: from the Karhunen–Loève transform, or from a finished model."""
