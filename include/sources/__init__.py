"""The inputs of a run from outside the store: the files of a data set, and the folder of a base model."""
