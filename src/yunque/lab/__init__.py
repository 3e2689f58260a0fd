"""The laboratory: the ideas inside a language model as things to look at. `yunque lab` is its command line.

`bits` needs neither torch nor numpy; `pictures` draws what the other modules computed.
"""
