"""The experiments of Nasr et al. 2023, each one command; see the README beside."""
