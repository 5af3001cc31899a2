"""The transforms of `hyper`: the analysis `g_a` and the synthesis `g_s`."""
