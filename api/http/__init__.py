"""HTTP for every dialect: it knows connections, bodies and routes, and no model.

listener.py    TLS and Unix sockets that serve one application
handshakes.py  connections before anybody knows who they are
protocol.py    HTTP/1.1 on one connection, with deadlines, bounds and the peer's identity
outgoing.py    how a response goes out, where uvicorn knows no better way
body.py        strict JSON from outside
routes.py      the table of routes, and who may call them
app.py         an application of routes
error_answers.py how an error is written, for every dialect
rates.py       what is left of a client's limits, and its deadline, as headers
streams.py     answers that take long: Server-Sent Events, clients that leave or do not read
openapi.py     /openapi.json
probes.py      what machines ask: alive, ready, metrics
"""
