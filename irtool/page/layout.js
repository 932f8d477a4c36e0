// A layered drawing (Sugiyama, Tagawa and Toda 1981): ranks by longest path, long edges through waypoints, few crossings by
// barycentres, then places. An edge's waypoints are shared by all that read the same value, so that a dense block stays a bundle.

const BOX = {width: 172, height: 46, gapX: 26, gapY: 36, lane: 12};
const WAYPOINTS = 30000;
const ROUNDS = 6;

/**
 * Places boxes. `through` holds edges (from * 1e6 + to) that pass where boxes of the other side stand, and these boxes.
 * Returns {x: [], y: [] (centres), routes: Map(from * 1e6 + to -> points), width, height, ranks, rank: []}.
 */
function layered(count, edges, through = new Map()) {
  const rank = rankOf(count, edges);
  const own = (edge) => through.get(edge[0] * 1e6 + edge[1]);
  const {items, ranks, links, lanes} = withWaypoints(count, edges.filter((edge) => !own(edge)), rank);
  order(ranks, links, items);
  const x = places(ranks, links, items);
  const left = Math.min(...Array.from({length: count}, (_, i) => x[i])) - BOX.width / 2;
  const right = Math.max(...Array.from({length: count}, (_, i) => x[i])) + BOX.width / 2;
  const step = BOX.height + BOX.gapY;
  const y = items.map((item) => item.rank * step + BOX.height / 2);
  const routes = new Map();
  for (const [from, to] of edges) {
    const via = own([from, to]) || (lanes.get(from) || []).filter((id) => items[id].rank < rank[to]);
    const points = rank[to] > rank[from] ? [from, ...via, to] : [from, to];
    routes.set(from * 1e6 + to, points.map((id) => [x[id] - left, y[id]]));
  }
  return {x: x.slice(0, count).map((value) => value - left), y: y.slice(0, count), routes, width: right - left, height: ranks.length * step - BOX.gapY, ranks: ranks.map((row) => row.filter((id) => id < count)), rank};
}

/** Longest path from the sources; in a cycle the box that comes first in the program goes first. */
function rankOf(count, edges) {
  const next = Array.from({length: count}, () => []);
  const waits = new Array(count).fill(0);
  for (const [from, to] of edges) { next[from].push(to); waits[to] += 1; }
  const rank = new Array(count).fill(0);
  const done = new Array(count).fill(false);
  const ready = [];
  for (let id = count - 1; id >= 0; id -= 1) if (!waits[id]) ready.push(id);
  let first = 0;
  for (let placed = 0; placed < count; placed += 1) {
    while (first < count && done[first]) first += 1;
    const id = ready.length ? ready.pop() : first;
    if (done[id]) { placed -= 1; continue; }
    done[id] = true;
    for (const to of next[id]) {
      if (done[to]) continue;
      rank[to] = Math.max(rank[to], rank[id] + 1);
      waits[to] -= 1;
      if (!waits[to]) ready.push(to);
    }
  }
  // A source that is read late (a constant) stands right above its reader.
  const fed = new Array(count).fill(false);
  for (const [, to] of edges) fed[to] = true;
  for (let id = 0; id < count; id += 1) {
    if (!fed[id] && next[id].length && id !== 0) rank[id] = Math.max(0, Math.min(...next[id].map((to) => rank[to])) - 1);
  }
  return rank;
}

function withWaypoints(count, edges, rank) {
  const items = Array.from({length: count}, (_, id) => ({id, rank: rank[id], wide: true}));
  const links = [];
  const lanes = new Map();
  const farthest = new Map();
  for (const [from, to] of edges) farthest.set(from, Math.max(farthest.get(from) ?? 0, rank[to]));
  for (const [from, last] of farthest) {
    const lane = [];
    for (let r = rank[from] + 1; r < last && items.length < count + WAYPOINTS; r += 1) {
      items.push({id: items.length, rank: r, wide: false});
      links.push([lane.length ? lane[lane.length - 1] : from, items.length - 1, 4]);
      lane.push(items.length - 1);
    }
    lanes.set(from, lane);
  }
  for (const [from, to] of edges) {
    if (rank[to] <= rank[from]) continue;
    const lane = lanes.get(from);
    const gap = rank[to] - rank[from];
    const above = gap === 1 ? from : lane[gap - 2];
    if (above !== undefined) links.push([above, to, 1]);
  }
  const ranks = Array.from({length: Math.max(0, ...rank) + 1}, () => []);
  for (const item of items) ranks[item.rank].push(item.id);
  return {items, ranks, links, lanes};
}

function neighbours(links, size) {
  const up = Array.from({length: size}, () => []);
  const down = Array.from({length: size}, () => []);
  for (const [a, b, weight] of links) { down[a].push([b, weight]); up[b].push([a, weight]); }
  return {up, down};
}

function order(ranks, links, items) {
  const {up, down} = neighbours(links, items.length);
  const place = new Array(items.length).fill(0);
  for (const row of ranks) row.forEach((id, index) => { place[id] = index; });
  for (let round = 0; round < ROUNDS; round += 1) {
    const sweep = round % 2 ? [...ranks].reverse() : ranks;
    const beside = round % 2 ? down : up;
    for (const row of sweep) {
      if (row.length < 2) continue;
      const key = new Map(row.map((id) => [id, beside[id].length
        ? beside[id].reduce((sum, [other]) => sum + place[other], 0) / beside[id].length : place[id]]));
      row.sort((a, b) => key.get(a) - key.get(b) || place[a] - place[b]);
      row.forEach((id, index) => { place[id] = index; });
    }
  }
}

/** Each item as near to its neighbours as the order allows, rank by rank, downwards and upwards in turn. */
function places(ranks, links, items) {
  const {up, down} = neighbours(links, items.length);
  const x = new Array(items.length).fill(0);
  const gap = (a, b) => (items[a].wide ? BOX.width / 2 : BOX.lane / 2) + (items[b].wide ? BOX.width / 2 : BOX.lane / 2)
    + (items[a].wide || items[b].wide ? BOX.gapX : BOX.lane);
  for (const row of ranks) row.forEach((id, index) => { x[id] = index ? x[row[index - 1]] + gap(row[index - 1], id) : 0; });
  for (let round = 0; round < ROUNDS + 2; round += 1) {
    const sweep = round % 2 ? [...ranks].reverse() : ranks;
    const beside = round % 2 ? down : up;
    for (const row of sweep) {
      const wanted = row.map((id) => {
        const near = beside[id].length ? beside[id] : round % 2 ? up[id] : down[id];
        const total = near.reduce((sum, [, weight]) => sum + weight, 0);
        return total ? near.reduce((sum, [other, weight]) => sum + weight * x[other], 0) / total : x[id];
      });
      settle(row, wanted, row.map((id) => (items[id].wide ? 1 : 3)), gap).forEach((value, index) => { x[row[index]] = value; });
    }
  }
  return x;
}

/** The least squares places with gaps at least as wide as needed: isotonic regression by pooling neighbours that clash. */
function settle(row, wanted, weights, gap) {
  const offsets = [0];
  for (let i = 1; i < row.length; i += 1) offsets.push(offsets[i - 1] + gap(row[i - 1], row[i]));
  const pools = [];
  row.forEach((_, i) => {
    pools.push({sum: weights[i] * (wanted[i] - offsets[i]), weight: weights[i], size: 1});
    while (pools.length > 1) {
      const [a, b] = pools.slice(-2);
      if (a.sum / a.weight <= b.sum / b.weight) break;
      pools.splice(-2, 2, {sum: a.sum + b.sum, weight: a.weight + b.weight, size: a.size + b.size});
    }
  });
  return pools.flatMap((pool) => new Array(pool.size).fill(pool.sum / pool.weight)).map((value, i) => value + offsets[i]);
}
