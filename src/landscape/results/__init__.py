"""What a result is, and the HDF5 file that holds it."""
