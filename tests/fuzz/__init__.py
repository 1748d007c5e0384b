"""Fuzzing of everything that reads bytes which somebody else, or a failing disk, may have changed.

`python -m tests.fuzz --inputs 1000000` mutates valid inputs and hands them to the readers. What
must hold for each: it is accepted, or refused by an error of ours (for a message that means dead
letters). Any other exception, more than `SECONDS` for one input, or more memory than `MEMORY_BYTES`
is a failure, which hypothesis makes as small as it can.

Most formats have checksums, so that a mutation rarely gets behind them. Half of the inputs have
theirs put right again, as a faulty writer or an adversary would.
"""
