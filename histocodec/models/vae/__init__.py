"""The system of Nasr et al. 2023: a variational autoencoder on independent patches."""
