"""Benchmarks: FUploader 1.0.5 and this project on the same machine, servers and messages.

`python -m benchmarks` (or `make bench`) starts a private RabbitMQ, Redis and S3 server with all
data on a journalled ext4, measures rows, and writes a table and JSON lines below
`benchmarks/results/`.

What must always hold:

- Both contenders get the same messages, servers and disk, and run as processes of their own, as
  their users start them. What is measured of one is measured of the other in the same way.
- A figure is what was measured in this run: several repetitions, given as median, least and most.
  What could not be measured is an empty place with the reason beside it.
- A run whose messages did not all arrive does not count.

The modules:

    ground     disk, servers, sizes: what all measurements share
    contenders how each of the two is configured and started
    drains     one drain of a backlog: rate, CPU, memory
    ways       one whole way, from the queue to the object store
    processing slots that are processed, and what others take for the same items
    rows/      which measurements make which rows, a module for each group
    results    values, rows, the file;  report  the table for people
"""
