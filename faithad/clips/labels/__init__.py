"""LABELS: events for other tools, and an expert's labels from them.

    label          a label, and the text of an alarm's label
    names          recording names as file names, and back; which recording a name means
    audacity       label tracks, one .txt per recording
    raven          selection tables, one .txt per recording
    label_studio   tasks as JSON, all recordings in one file
    csv_labels     a table, all recordings in one file
    files          all label files of a folder, written and read
    reference      labels as annotations: the reference intervals of an evaluation

A format is two functions on text: `files` (from labels to texts by file name) and `parse` (from a text to labels and a
list of its problems, with line numbers). Reading reports all problems of all files in one error.
"""
