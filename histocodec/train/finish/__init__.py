"""How a trained model is finished: pruned, its synthesis in integers, its frequency tables fitted."""
