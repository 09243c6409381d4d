"""What all engines that are vLLM share."""
