"""What the codec costs and gains, measured beside the codecs that people would use instead."""
