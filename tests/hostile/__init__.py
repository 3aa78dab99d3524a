"""Hostile inputs, made anew from a seed at every door of the library, and one oracle that judges what became of them.

    python -m tests.hostile --cases 20000 --seed 7

Case k of seed N is a function of (N, k) alone. Each runs in a child that is forked from a parent with everything
imported, in a folder of its own, with a limit on time and memory.

    case.py     what a case is, and how a door chooses one
    damage.py   bytes and JSON, damaged
    samples.py  good samples, and whether a source gives back what was put in
    child.py    one case in a forked child
    oracle.py   what must be true of the outcome
    report.py   the table, the causes, and the figures as JSON
    doors/      one file for each door
"""
