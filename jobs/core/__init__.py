"""What every room stands on: errors, configuration, files, processes."""
