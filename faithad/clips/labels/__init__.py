"""LABELS: events out to other tools, and what an expert made of them back in.

    label          what a label is, and the words that an alarm is written with
    names          recording names as file names, and back, and which recording somebody means by one
    audacity       label tracks, one .txt per recording
    raven          selection tables, one .txt per recording
    label_studio   tasks as JSON, all recordings in one file
    csv_labels     a table, all recordings in one file
    files          whole folders of these, written and read back
    reference      labels as annotations, the reference intervals of an evaluation

A format is two functions on text: `files` (labels to texts by file name) and `parse` (a text to labels and to what is
wrong with it, with line numbers). Reading tells all problems of all files at once.
"""
