"""The checks of `surgery verify`, one file each."""
