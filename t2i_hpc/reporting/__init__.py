"""GeneratedImages of a run for people: grids, one self-contained HTML page, one PNG for READMEs.

Reads the files of a run directory and knows no network; nothing here decides a result.
"""
