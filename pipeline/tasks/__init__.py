"""What a run may see of a store: classes, draws, tasks; and classifiers carried over to other classes."""
