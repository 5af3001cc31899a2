"""Containers of version 1: read for ever, no longer written. SPEC-1.md defines them."""
