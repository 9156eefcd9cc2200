"""The engines against independent references: a NumPy loop, autograd, and laws."""
