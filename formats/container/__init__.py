"""The container on disk, as `SPEC.md` defines it: layout, attributes, arrays, shards, integrity."""
