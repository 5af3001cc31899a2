"""The server of `histocodec serve`, and the page that it shows: slides over HTTP as DeepZoom, IIIF and OME-Zarr."""
