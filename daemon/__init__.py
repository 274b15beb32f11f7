"""The llmd daemon: identity, audit, placement and supervision. It never imports llama, CUDA or torch."""
