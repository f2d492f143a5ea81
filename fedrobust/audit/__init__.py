"""Proof of what a run computed: its signed log, its seal, and the check that the run's folder fits them.

>>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
>>> from fedrobust.audit.log import Log, check
>>> log = Log(Ed25519PrivateKey.generate())
>>> lines = log.line({"kind": "start", "clients": 8}) + log.line({"kind": "round", "round": 1})
>>> check(lines).reason
''
>>> check(lines.replace(b'"round":1', b'"round":2')).reason
'it was changed: its hash is another one'
"""
