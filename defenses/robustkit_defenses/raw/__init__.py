"""What `raw-isp` is made of: the Bayer mosaic, a camera and its inverse, two networks, their weights and training."""
