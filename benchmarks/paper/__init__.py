"""The experiments of Nasr et al. 2023 (arXiv 2303.13332), one command each; see README.md in this folder."""
