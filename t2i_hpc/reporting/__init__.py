"""The images and scores of a run for people: one self-contained HTML page, one PNG for READMEs.

Reads the files of a run directory and knows no network; nothing here decides a result.
"""
