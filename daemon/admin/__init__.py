"""What an admin can do to a running daemon.

service.py    its models, and the parts that the admin's commands use
shown.py      how what serves is shown
deployments.py what serves: plan, deploy, evict, undeploy, and a job that makes what is missing
forms.py      other forms of models, and the jobs that make them
fitting.py    what a deployment is asked to load, and which form of a model would fit
cards.py      the GPUs, and which of them are kept out of every plan
clients.py    who may connect: issue, revoke, roles
policies.py   who may use what: shown, changed, tried
usage.py      what clients have used: kept, told
upkeep.py     reloads by a signal, and what is renewed by itself
doctor.py     what is wrong on this machine, and what ends when
"""
