"""Every limit on what comes in from outside, in one place. Sizes are bytes, times are seconds."""

# connections
HANDSHAKE_SECONDS = 5.0
MAX_HANDSHAKES = 1024  # under way
HANDSHAKES_PER_SECOND = 300  # of one address; about a third of what one core computes
HANDSHAKE_BURST = 2000
HEADER_SECONDS = 10.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75.0
# of a peer that does not acknowledge, or takes nothing: seconds until it is gone
PEER_SECONDS = 30
PROBE_SECONDS = 10  # between the probes of an idle connection
WRITE_SECONDS = 30.0  # a full send buffer must shrink within this time, on every route
MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_CLIENT = 1024

# one request's head
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_URI_BYTES = 8 * 1024

# one request's body
MAX_FRAME_BYTES = 64 * 1024  # of chunks' sizes and extensions, and trailers; and FRAME_SHARE times the body
FRAME_SHARE = 8  # a chunk of one byte has five bytes around it
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_JSON_DEPTH = 32
MAX_JSON_NODES = 100_000
LARGE_VALUES = 1000  # what holds more is large: whatever walks over it holds up others
MAX_INT_DIGITS = 19

# streams
STALL_SECONDS = 30.0
MAX_STREAM_BACKLOG = 2 * 1024 * 1024
PING_SECONDS = 15.0

# answers
ACCEPT_SECONDS = 120.0  # until a worker has read a prompt in

# schemas
SCHEMA_SECONDS = 2.0  # to read one
FIT_SECONDS = 2.0  # to hold an answer against its own
FIT_WAIT_SECONDS = 10.0  # until that has begun

# parameters
MAX_CHOICES = 4
MAX_PROMPTS = 256  # of one request
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_TEMPLATE_ARGUMENTS = 16  # that a client gives a chat template
MAX_TEMPLATE_CHARS = 16 * 1024  # of their JSON
MAX_IDENTIFIER_CHARS = 4096  # of a call
MAX_LABELS = 16  # of metadata
MAX_LABEL_KEY_CHARS = 64
MAX_LABEL_CHARS = 512
MAX_TOKENS = 2**31 - 1
