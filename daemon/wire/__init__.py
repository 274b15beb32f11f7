"""What the daemon and its workers say to each other: msgspec structs, each with a tag. It imports nothing of ours.

work.py     what a model can be asked, and what each kind of it says of itself
events.py   what answers it
control.py  how a worker is started, what it is told, and what it tells of itself
message.py  what they all are
frames.py   how they travel
"""
