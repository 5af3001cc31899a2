"""Model files that the package ships, each with its card."""
