"""The families of models, one file each: a configuration, a model, a weight map."""
