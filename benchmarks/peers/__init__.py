"""The codecs that histocodec is compared with."""
