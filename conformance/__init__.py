"""A conformance suite for DICOMweb and DIMSE servers: black box, with data of its own (`imageset-gateway conformance`).

    requirements.toml   what a server has to do: identifier, level, basis, text, source
    suite.py            the cases' frame: `@case`, and the `Trial` that each works with
    dicomweb/ dimse/    the cases, one for each requirement that can be seen from outside
    samples.py          the instances that a run makes, stores, and removes
    server.py peer.py   the two wires: HTTP (httpx and bare sockets), DIMSE (pynetdicom and bare PDUs)
    reading.py          strict readers of DICOM JSON, multipart/related and Native DICOM XML
    running.py          one run: store, judge, remove
    report.py           what came of it: HTML, JSON, JUnit XML, text
    statement.toml      what this project's gateway claims; docs/conformance-statement.md is made from it

It shares no code with the gateway: what both misread alike would never show.
"""
