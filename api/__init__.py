"""What listens: the client API over mutual TLS, the admin socket, and `llmctl`.

http/    connections, bodies, errors, and the table that routes are registered in
openai/  the dialect of OpenAI's clients
admin/   the admin socket
cli/     `llmctl`
"""
