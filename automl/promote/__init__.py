"""From the best trial of a study to a graph, an engine and a bundle that can be handed over."""
