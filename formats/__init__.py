"""The container and everything that is stored in it. `SPEC.md` is the authority on every byte."""
