"""One function per stage: paths in, a folder out. The command line, the loop and the components all call these.

A stage writes into its `out` folder and may be killed at any time; called again with the same arguments it goes on or starts
over, and ends in the same bytes.
"""
