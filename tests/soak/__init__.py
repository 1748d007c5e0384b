"""The soak: everything that the pipeline stands on is killed while messages flow, then counted.

`python -m tests.soak --seconds 60 --seed 7` starts a private RabbitMQ, Redis and S3 server, a code
server and a daemon, publishes messages and kills, at seeded moments, whatever `plan.VICTIMS`
names; a process manager of its own starts again what one would start again. At the end nothing is
published or killed any more, everything has to be stored by itself, and what the broker confirmed
is compared, byte by byte, with what the archives in the bucket hold.
"""
