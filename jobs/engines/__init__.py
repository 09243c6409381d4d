"""What is served: command line, environment, memory and log of each engine."""
