"""`python -m stellarbyte` is the program `stellarbyte`."""

from stellarbyte.door import program

program()
