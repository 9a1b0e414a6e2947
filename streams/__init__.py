"""The data plane: topics, contracts, windows, state and the task that keeps them exactly once."""
