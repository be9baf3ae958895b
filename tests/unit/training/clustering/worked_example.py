"""A four-domain example with known answers, and slow literal forms of the algorithms as second formulas."""

import numpy as np

from training.clustering.gain import Matrices

MC = np.array([[0, 0.4, 1.2, 1.0], [0.4, 0, 1.1, 0.9], [1.2, 1.1, 0, 0.5], [1.0, 0.9, 0.5, 0]])
W = np.array([0.4, 0.3, 0.2, 0.1])
MI = np.array([[20, 12, -6, -2], [10, 18, -4, 1], [-8, -5, 16, 9], [-3, 4, 8, 14]]) / 1000
MH = np.array([[8, 6, -2, 3], [4, 7, 1, -1], [-4, -3, 9, 5], [2, 3, 4, 6]]) / 1000
EXAMPLE = Matrices(mi=MI, mh=MH, mc=MC, shares=W)


def random_matrices(rng, D):
    """Matrices without ties."""
    mc = rng.uniform(0.01, 1.5, (D, D))
    mc = (mc + mc.T) / 2
    np.fill_diagonal(mc, 0)
    return Matrices(
        mi=rng.normal(0, 0.01, (D, D)) + 0.01 * np.eye(D),
        mh=rng.normal(0, 0.005, (D, D)),
        mc=mc,
        shares=rng.dirichlet(np.ones(D)),
    )


def literal_lambda(MC, v, S):
    """A5 with its conventions, loops only."""
    if len(S) == 1:
        return 0.0
    tot = sum(MC[x, y] for x in S for y in S)
    s = sum(MC[x, v] for x in S)
    if tot == 0:
        return 0.5 if s == 0 else 1.0
    return min(1.0, len(S) * s / (2 * tot))


def literal_gain(m, u, v, S):
    """J(u -> v|S)."""
    lam = literal_lambda(m.mc, v, S)
    return (1 - lam) * m.mi[u, v] + lam * m.mh[u, v]


def literal_score(m, u, T, S, bonus):
    """Score of candidate u for S."""
    grown = [*S, u]
    weight = sum(m.shares[v] for v in T)
    if weight > 0:
        mean = sum(m.shares[v] * literal_gain(m, u, v, grown) for v in T) / weight
    else:
        mean = sum(literal_gain(m, u, v, grown) for v in T) / len(T)
    return mean + (0 if bonus is None else bonus[u])


def literal_source_set(m, T, num_seeds=2, bonus=None):
    """Algorithm 1."""
    D = len(m.shares)
    S = sorted(sorted(T), key=lambda v: literal_lambda(m.mc, v, sorted(T)))[:num_seeds]
    while len(S) < D:
        scores = {u: literal_score(m, u, T, S, bonus) for u in range(D) if u not in S}
        best = max(scores, key=lambda u: (scores[u], -u))
        if scores[best] < 0:
            break
        S.append(best)
    return S


def literal_recluster(m, labels, K):
    """Algorithm 2, every S_k recomputed in every pass."""
    D = len(labels)
    T = []
    for k in range(K):
        ids = [d for d in range(D) if labels[d] == k]
        T.append([min(ids, key=lambda v: (round(literal_lambda(m.mc, v, ids), 12), v))])  # two always tie
    Q = [d for d in range(D) if all(d not in t for t in T)]
    passes = 0
    while Q:
        S = [literal_source_set(m, t) for t in T]
        # Equal source sets give equal gains but for the order of summation; the lowest cluster wins.
        g = {d: [round(sum(literal_gain(m, u, d, S[k]) for u in S[k]), 14) for k in range(K)] for d in Q}
        cand = [max(Q, key=lambda d: (g[d][k], -d)) for k in range(K)]
        for k in range(K):
            if cand[k] in Q and max(range(K), key=lambda j: (g[cand[k]][j], -j)) == k:
                Q.remove(cand[k])
                T[k].append(cand[k])
        passes += 1
    result = np.empty(D, dtype=int)
    for k, t in enumerate(T):
        result[t] = k
    return result, [literal_source_set(m, t) for t in T], passes
