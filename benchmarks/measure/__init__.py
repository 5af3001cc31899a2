"""Measure images: what each codec needs and keeps of them, one row per image, codec and point."""
