"""Causal domain clustering (CDC): which cluster serves a domain, and which domains train it.

A lookahead steps on what `state.plan()` names and delivers losses or a gradient Gram matrix; `update` turns
them into target clusters T_k and source sets S_k; `assignment` writes the artefact that training, manifest
and routing read. The matrix part is pure numpy, values throughout. Invariant: T is a partition with no empty
cluster, and no S_k is empty.

Sources: CDC, "Causal Domain Clustering for Multi-Domain Recommendation", arXiv 2507.06877 (SIGIR 2025); the
dependence kernel of Markham et al. 2022; TAG of Fifty et al. 2021.
"""
