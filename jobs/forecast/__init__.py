"""What a start will need and take."""
