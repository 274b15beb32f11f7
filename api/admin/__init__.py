"""The admin socket: the kernel says who calls.

routes.py   what `llmctl` calls
forms.py    of it, what is about models' forms and jobs
service.py  who asks, and the daemon's service
"""
