"""The passes of the interior point over the rows, compiled by Numba: one pass each, for the CPU.

See :mod:`coincide.pseudolabels.rows.contract` for the mathematics. Between passes there are the
predictions as they came, the labels, the slacks and a few scalars a row, nothing else of their
size: a pass works on blocks of rows that stay in the cache, and what it needs of an earlier one,
such as the predictor, it computes again from the scalars. That is quicker than to store it.

Labels and slacks lie entry by entry, ``(C, M)``: the innermost loops run along the rows of a block,
so they are vectorized without a horizontal sum whatever C is. The same passes serve all K classes
and a few candidates of each row: what differs is where an entry's class stands (``_spread``,
``_collect``). Predictions may be float32; all arithmetic is in float64. Ranges of rows run on
threads (the compiled code releases the GIL).
"""

from __future__ import annotations

import numpy as np

from coincide._threads import compiled
from coincide.pseudolabels.rows.contract import MOST_CORRECTION

# Of a row: scale and offset of g = p·scale - offset, 1 + q·e, κ, Σb, Σe, q·e; then of the
# predictor and of the corrected direction ``(r + g·slope - level)/ζ``.
_SCALE, _OFFSET, _DENOMINATOR, _KAPPA, _TOTAL, _SUM_E, _CURVATURE = range(7)
_LEVEL, _SLOPE, _NEXT_LEVEL, _NEXT_SLOPE = range(7, 11)
SCALARS = 11


@compiled
def _spread(vector, c, classes, first, out):
    """Fill ``out`` with what a K-vector holds for entry ``c`` of a block of rows."""
    if classes.shape[0] == 0:
        out[:] = vector[c]
    else:
        own = classes[c]
        for j in range(out.shape[0]):
            out[j] = vector[own[first + j]]


@compiled
def _collect(values, c, classes, first, total):
    """Add the values of entry ``c`` of a block of rows to the K-vector of their classes."""
    if classes.shape[0] == 0:
        held = 0.0
        for j in range(values.shape[0]):
            held += values[j]
        total[c] += held
    else:
        own = classes[c]
        for j in range(values.shape[0]):
            total[own[first + j]] += values[j]


@compiled
def _class_of(entry, row, classes):
    """Return the class of an entry."""
    return entry if classes.shape[0] == 0 else np.int64(classes[entry, row])


@compiled
def _load(p, first, known, g):
    """Fill ``g`` with minus the gradients of a block of rows, entry by entry, zero at the lead."""
    for c in range(p.shape[1]):
        gc = g[c]
        for j in range(known.shape[1]):
            gc[j] = p[first + j, c] * known[_SCALE, j] - known[_OFFSET, j]


@compiled
def _find_lead(p, first, y, known, lead, g, lanes, collision):
    """Find every row's largest label, and the gradients relative to it."""
    n = lead.shape[0]
    lanes[:3] = 0
    for c in range(p.shape[1]):
        gc, yc, own = g[c], y[c], float(c)
        for j in range(n):
            gc[j] = p[first + j, c]
        for j in range(n):
            lanes[0, j] += gc[j] * yc[j]
            larger = yc[j] > lanes[1, j]
            lanes[2, j] = own if larger else lanes[2, j]
            lanes[1, j] = yc[j] if larger else lanes[1, j]
    for j in range(n):
        lead[j] = int(lanes[2, j])
        known[_SCALE, j] = 1 / lanes[0, j] if collision else 1.0
        known[_OFFSET, j] = g[lead[j], j] * known[_SCALE, j]
    for c in range(p.shape[1]):
        gc = g[c]
        for j in range(n):
            gc[j] = gc[j] * known[_SCALE, j] - known[_OFFSET, j]


@compiled
def _project(dr, er, known, curved, beta, gamma):
    """Find ``β`` and ``γ`` of ``P r`` for a block of rows, from ``d·r`` and ``e·r``."""
    for j in range(known.shape[1]):
        beta[j] = (dr[j] - curved * known[_KAPPA, j] * er[j]) / known[_TOTAL, j]
        gamma[j] = curved * (er[j] / known[_DENOMINATOR, j] - known[_KAPPA, j] * beta[j])


@compiled
def factor(rows, p, w, y, zeta, classes, collision, block, lead, scalars, product, gradient, mean):
    """Fill ``b √(ω/Σb)`` and ``e √(ω/(1+q·e))``, side by side; add ``Σ ω P g`` and ``Σ ω y``."""
    entries, many = y.shape[0], rows[1] - rows[0]
    curved = 1.0 if collision else 0.0
    g, d = np.empty((entries, block)), np.empty((entries, block))
    lanes = np.empty((11, block))
    complementarity = 0.0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part, start = slice(first, first + n), first - rows[0]
        known, weight, moved = scalars[:, part], w[part], lanes[10, :n]
        _find_lead(p, first, y[:, part], known, lead[part], g, lanes, collision)
        lanes[:4] = 0
        for c in range(entries):
            yc, zc, gc, dc = y[c, part], zeta[c, part], g[c], d[c]
            for j in range(n):
                dc[j] = yc[j] / zc[j]
            for j in range(n):
                e = dc[j] * gc[j]
                lanes[0, j] += dc[j]
                lanes[1, j] += e
                lanes[2, j] += e * gc[j]
                lanes[3, j] += yc[j] * zc[j]
        for j in range(n):
            known[_SUM_E, j] = lanes[1, j]
            known[_CURVATURE, j] = lanes[2, j]
            known[_DENOMINATOR, j] = 1 + curved * lanes[2, j]
            known[_KAPPA, j] = curved * lanes[1, j] / known[_DENOMINATOR, j]
            known[_TOTAL, j] = lanes[0, j] - known[_KAPPA, j] * lanes[1, j]
            lanes[4, j] = curved * np.sqrt(weight[j] / known[_DENOMINATOR, j])
            lanes[5, j] = np.sqrt(weight[j] / known[_TOTAL, j])
            lanes[8, j], lanes[9, j] = known[_KAPPA, j], weight[j]
            complementarity += weight[j] * lanes[3, j]
        # For r = g: d·r = Σe and e·r = q·e.
        _project(lanes[1], lanes[2], known, curved, lanes[6], lanes[7])
        for c in range(entries):
            yc, gc, dc = y[c, part], g[c], d[c]
            bc = product[c, start : start + n]
            ec = product[c, many + start : many + start + n]
            for j in range(n):
                bc[j] = dc[j] * (1 - gc[j] * lanes[8, j]) * lanes[5, j]
            if collision:
                for j in range(n):
                    ec[j] = dc[j] * gc[j] * lanes[4, j]
            for j in range(n):
                moved[j] = lanes[9, j] * dc[j] * (gc[j] - lanes[6, j] - gc[j] * lanes[7, j])
            _collect(moved, c, classes, first, gradient)
            for j in range(n):
                moved[j] = lanes[9, j] * yc[j]
            _collect(moved, c, classes, first, mean)
    return complementarity


@compiled
def add_products(product, classes, first, gram):
    """Add ``b bᵀ + e eᵀ`` of every row above the diagonal; classes descend within a row."""
    many = product.shape[1] // 2
    for c in range(1, product.shape[0]):
        for a in range(c):
            high, low = classes[c], classes[a]
            for j in range(many):
                held = product[c, j] * product[a, j] + product[c, many + j] * product[a, many + j]
                gram[high[first + j], low[first + j]] += held


@compiled
def _sum_sides(y, zeta, classes, first, shift, g, inverse, spread, lanes):
    """Add ``d·r`` and ``e·r`` of a block of rows to ``lanes``, for ``r`` the shift and for 1/y."""
    n = y.shape[1]
    for c in range(y.shape[0]):
        yc, zc, gc, jc, sc = y[c], zeta[c], g[c], inverse[c], spread[c, :n]
        _spread(shift, c, classes, first, sc)
        for j in range(n):
            jc[j] = 1 / zc[j]
        for j in range(n):
            part_of = yc[j] * jc[j] * (sc[j] - lanes[8, j])
            lanes[0, j] += part_of
            lanes[1, j] += part_of * gc[j]
            part_of = jc[j] * (1 - yc[j] * lanes[9, j])
            lanes[4, j] += part_of
            lanes[5, j] += part_of * gc[j]


@compiled
def predict(
    rows, p, w, y, zeta, classes, collision, block, lead, scalars, shift, center, second, sums
):
    """Find the affine direction and sum what the corrector needs."""
    entries, curved = y.shape[0], 1.0 if collision else 0.0
    room = np.empty((3, entries, block))
    g, inverse, bent = room[0], room[1], room[2]
    # Sums and levels of r = g + shift, of 1/y, and of the second-order term.
    lanes = np.empty((18, block))
    dr, er, beta, gamma = lanes[0], lanes[1], lanes[2], lanes[3]
    dc, ec, beta_c, gamma_c = lanes[4], lanes[5], lanes[6], lanes[7]
    top, top_center = lanes[8], lanes[9]
    lanes[10:14] = 0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known, weight, leads = scalars[:, part], w[part], lead[part]
        moved = lanes[17, :n]
        _load(p, first, known, g)
        for j in range(n):
            dr[j], er[j], dc[j], ec[j] = known[_SUM_E, j], known[_CURVATURE, j], 0.0, 0.0
            top[j] = shift[_class_of(leads[j], first + j, classes)]
            top_center[j] = 1 / y[leads[j], first + j]
            lanes[14, j] = weight[j]
        _sum_sides(y[:, part], zeta[:, part], classes, first, shift, g, inverse, bent, lanes)
        _project(dr, er, known, curved, beta, gamma)
        _project(dc, ec, known, curved, beta_c, gamma_c)
        for j in range(n):
            known[_LEVEL, j] = lanes[15, j] = beta[j] + top[j]
            known[_SLOPE, j] = lanes[16, j] = 1 - gamma[j]
            beta_c[j] += top_center[j]
            rho = -beta[j] * inverse[leads[j], j]
            top[j] = zeta[leads[j], first + j] * min(rho * (1 + rho), MOST_CORRECTION)
        lanes[:2] = 0
        for c in range(entries):
            yc, zc, gc, jc, tc = y[c, part], zeta[c, part], g[c], inverse[c], bent[c]
            for j in range(n):
                rho = (gc[j] * lanes[16, j] + tc[j] - lanes[15, j]) * jc[j]
                lanes[10, j] = min(lanes[10, j], rho)
                lanes[11, j] = max(lanes[11, j], rho)
                along = lanes[14, j] * yc[j] * zc[j] * rho
                lanes[12, j] += along
                lanes[13, j] += along * rho
                t = zc[j] * min(rho * (1 + rho), MOST_CORRECTION) - lanes[8, j]
                tc[j] = t
                t *= yc[j] * jc[j]
                lanes[0, j] += t
                lanes[1, j] += t * gc[j]
            for j in range(n):
                along = 1 - yc[j] * (lanes[6, j] + gc[j] * lanes[7, j])
                moved[j] = lanes[14, j] * jc[j] * along
            _collect(moved, c, classes, first, center)
        _project(dr, er, known, curved, beta, gamma)
        for c in range(entries):
            yc, gc, jc, tc = y[c, part], g[c], inverse[c], bent[c]
            for j in range(n):
                along = tc[j] - lanes[2, j] - gc[j] * lanes[3, j]
                moved[j] = lanes[14, j] * yc[j] * jc[j] * along
            _collect(moved, c, classes, first, second)
    sums[0], sums[1] = lanes[10].min(), lanes[11].max()
    sums[2], sums[3] = lanes[12].sum(), lanes[13].sum()


@compiled
def correct(
    rows, p, y, zeta, classes, collision, block, lead, scalars, affine, shift, target, sums
):
    """Find the levels of the corrected direction and its smallest entries."""
    entries, curved = y.shape[0], 1.0 if collision else 0.0
    room = np.empty((3, entries, block))
    g, inverses, rest = room[0], room[1], room[2]
    lanes = np.empty((11, block))
    dr, er, beta, gamma, top = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    lanes[5:7] = np.inf
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known, leads = scalars[:, part], lead[part]
        ac, sc = lanes[9, :n], lanes[10, :n]
        _load(p, first, known, g)
        for j in range(n):
            c, i = leads[j], first + j
            k = _class_of(c, i, classes)
            rho = (affine[k] - known[_LEVEL, j]) / zeta[c, i]
            bent = zeta[c, i] * min(rho * (1 + rho), MOST_CORRECTION)
            top[j] = shift[k] + target / y[c, i] + bent
            lanes[7, j], lanes[8, j] = known[_LEVEL, j], known[_SLOPE, j]
        lanes[:2] = 0
        for c in range(entries):
            yc, zc, gc, jc, rc = y[c, part], zeta[c, part], g[c], inverses[c], rest[c]
            _spread(affine, c, classes, first, ac)
            _spread(shift, c, classes, first, sc)
            for j in range(n):
                inverse = 1 / (yc[j] * zc[j])
                jc[j] = inverse
                rho = (gc[j] * lanes[8, j] + ac[j] - lanes[7, j]) * yc[j] * inverse
                drift = target * inverse + min(rho * (1 + rho), MOST_CORRECTION)
                rc[j] = drift
                r = sc[j] + zc[j] * drift - lanes[4, j] + gc[j]
                moved = yc[j] * yc[j] * inverse * r
                lanes[0, j] += moved
                lanes[1, j] += moved * gc[j]
        _project(dr, er, known, curved, beta, gamma)
        for j in range(n):
            known[_NEXT_LEVEL, j] = lanes[7, j] = beta[j] + top[j]
            known[_NEXT_SLOPE, j] = lanes[8, j] = 1 - gamma[j]
        for c in range(entries):
            yc, zc, gc, jc, rc = y[c, part], zeta[c, part], g[c], inverses[c], rest[c]
            _spread(shift, c, classes, first, sc)
            for j in range(n):
                r = sc[j] + zc[j] * rc[j] + gc[j] * lanes[8, j] - lanes[7, j]
                primal = r * yc[j] * jc[j]
                lanes[5, j] = min(lanes[5, j], primal)
                lanes[6, j] = min(lanes[6, j], rc[j] - 1 - primal)
    sums[0], sums[1] = lanes[5].min(), lanes[6].min()


@compiled
def advance(
    rows, p, y, zeta, classes, block, scalars, affine, shift, target, primal_length, dual_length
):
    """Move along the corrected direction and put the labels back on the simplex."""
    entries = y.shape[0]
    g, lanes = np.empty((entries, block)), np.empty((7, block))
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known, ac, sc = scalars[:, part], lanes[5, :n], lanes[6, :n]
        _load(p, first, known, g)
        for j in range(n):
            lanes[0, j], lanes[1, j], lanes[2, j] = 0, known[_LEVEL, j], known[_SLOPE, j]
            lanes[3, j], lanes[4, j] = known[_NEXT_LEVEL, j], known[_NEXT_SLOPE, j]
        for c in range(entries):
            yc, zc, gc = y[c, part], zeta[c, part], g[c]
            _spread(affine, c, classes, first, ac)
            _spread(shift, c, classes, first, sc)
            for j in range(n):
                inverse = 1 / (yc[j] * zc[j])
                rho = (gc[j] * lanes[2, j] + ac[j] - lanes[1, j]) * yc[j] * inverse
                drift = target * inverse + min(rho * (1 + rho), MOST_CORRECTION)
                r = sc[j] + zc[j] * drift + gc[j] * lanes[4, j] - lanes[3, j]
                primal = r * yc[j] * inverse
                yc[j] *= 1 + primal_length * primal
                zc[j] *= 1 + dual_length * (drift - 1 - primal)
                lanes[0, j] += yc[j]
        for j in range(n):
            lanes[0, j] = 1 / lanes[0, j]
        for c in range(entries):
            yc = y[c, part]
            for j in range(n):
                yc[j] *= lanes[0, j]
