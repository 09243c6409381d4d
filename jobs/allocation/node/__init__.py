"""Life of one service: what is started, with which environment, when it is ready, how it ends."""
