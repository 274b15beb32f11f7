"""What listens: the client API over mutual TLS, the admin socket, and `llmctl`."""
