"""Many slides: plan them, compress them on a Dask cluster, and look at what came out."""
