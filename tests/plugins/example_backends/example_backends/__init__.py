"""Back ends that a site brings by itself."""
