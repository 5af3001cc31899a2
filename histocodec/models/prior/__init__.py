"""The entropy model of `hyper`: one graph, evaluated for training, exactly, and fast."""
