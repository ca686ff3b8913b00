"""Networks to graphs, and the proof that a graph is the network."""
