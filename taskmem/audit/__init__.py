"""Audit: what an adapter was made of, held against every digest that names it. Readers only.

links.py                the chain: links that are verified, damaged, missing or erased
history.py, data.py     the lineage repository and its data, read as if a stranger had written both
adapter.py, request.py  the chain of an adapter, and of an answer
rebuild.py              the adapter made again from its inputs
diff.py                 what changed from one adapter to another
show.py, page.py        the terminal, JSON and HTML
"""
