"""Video diffusion transformers in JAX for TPU and GPU."""
