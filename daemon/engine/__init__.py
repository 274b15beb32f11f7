"""The engine: a worker process with continuous batching over one model. It imports only itself and
`llmd.daemon.errors`."""
