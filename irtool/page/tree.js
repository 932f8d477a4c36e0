// The module tree of a picture, and which boxes there are when some modules are folded.

const STATUS = {
  same: {mark: "", words: "the same"},
  changed: {mark: "~", words: "changed"},
  removed: {mark: "−", words: "removed"},
  added: {mark: "+", words: "added"},
  replaced: {mark: "↦", words: "replaced"},
  lowered: {mark: "=", words: "other operators, the same result"},
};
const WORST = ["changed", "replaced", "removed", "added", "lowered", "same"];
const LONG = 120; // a run of more nodes without a module of their own is cut into stretches
const STRETCH = 40;
const ROOMY = 120; // boxes to begin with

class Tree {
  constructor(picture) {
    this.nodes = picture.nodes;
    this.edges = {before: picture.edges_before, after: picture.edges_after};
    this.modules = new Map(); // path -> {path, label, parent, depth, children: [path], own: [index], all: [index]}
    this.home = new Array(this.nodes.length);
    this.add("");
    this.nodes.forEach((node, index) => this.place(node, index));
    for (const path of [...this.modules.keys()]) this.cut(this.modules.get(path));
    this.nodes.forEach((_, index) => {
      for (let path = this.home[index]; path !== null; path = this.modules.get(path).parent) this.modules.get(path).all.push(index);
    });
    this.open = new Set([""]);
  }

  add(path) {
    if (this.modules.has(path)) return this.modules.get(path);
    const parent = path === "" ? null : path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "";
    const above = parent === null ? null : this.add(parent);
    const module = {path, label: path, parent, depth: above ? above.depth + 1 : 0, children: [], own: [], all: []};
    this.modules.set(path, module);
    if (above) above.children.push(path);
    return module;
  }

  place(node, index) {
    this.home[index] = node.module;
    this.add(node.module).own.push(index);
  }

  /** Many nodes without a module between them: stretches of them fold as modules do. */
  cut(module) {
    if (module.own.length <= LONG) return;
    const own = module.own;
    module.own = [];
    for (let start = 0; start < own.length; start += STRETCH) {
      const part = own.slice(start, start + STRETCH);
      const path = `${module.path}\u0000${start}`;
      this.modules.set(path, {
        path, label: `nodes ${start + 1} to ${start + part.length}`, parent: module.path, depth: module.depth + 1, children: [], own: part, all: [],
      });
      module.children.push(path);
      for (const index of part) this.home[index] = path;
    }
  }

  /** The modules around a node, outermost first. */
  ancestors(index) {
    const found = [];
    for (let path = this.home[index]; path; path = this.modules.get(path).parent) found.unshift(path);
    return found;
  }

  /** Open level by level, as long as a whole level has room. */
  openSome(room = ROOMY) {
    this.open = new Set([""]);
    let count = this.parts("");
    let level = [...this.modules.get("").children];
    while (level.length) {
      count += level.reduce((sum, path) => sum + this.parts(path) - 1, 0);
      if (count > room) return;
      for (const path of level) this.open.add(path);
      level = level.flatMap((path) => this.modules.get(path).children);
    }
  }

  parts(path) {
    const module = this.modules.get(path);
    return module.children.length + module.own.length;
  }

  openAll() { this.open = new Set(this.modules.keys()); }

  foldAll() { this.open = new Set([""]); }

  reveal(index) { for (const path of this.ancestors(index)) this.open.add(path); }

  /** Whether a module and all around it are unfolded. */
  shown(path) {
    for (let at = path; at !== null; at = this.modules.get(at).parent) if (!this.open.has(at)) return false;
    return true;
  }

  /** The outermost folded module around a node, or null if the node is to be seen. */
  cover(index) { return this.ancestors(index).find((path) => !this.open.has(path)) ?? null; }

  /** Boxes, and edges between them for each side. */
  view() {
    const boxes = [];
    const byKey = new Map();
    const boxOf = this.nodes.map((node, index) => {
      const cover = this.cover(index);
      const key = cover === null ? index : cover;
      if (!byKey.has(key)) {
        byKey.set(key, boxes.length);
        boxes.push(cover === null ? this.nodeBox(index) : this.moduleBox(cover));
      }
      return byKey.get(key);
    });
    boxes.forEach((box, id) => { box.id = id; });
    return {boxes, boxOf, edges: {before: lifted(this.edges.before, boxOf), after: lifted(this.edges.after, boxOf)}};
  }

  nodeBox(index) {
    const node = this.nodes[index];
    return {kind: "node", key: `n${index}`, first: index, nodes: [index], status: node.status, before: node.before !== null, after: node.after !== null};
  }

  moduleBox(path) {
    const {all, label} = this.modules.get(path);
    const nodes = all.map((index) => this.nodes[index]);
    const status = WORST.find((kind) => nodes.some((node) => node.status === kind));
    // Where all is new or all is gone the module is; a mixture has changed.
    const whole = nodes.every((node) => node.status === status);
    return {
      kind: "module", key: `m${path}`, path, label, first: all[0], nodes: all, status: whole || status === "lowered" ? status : "changed",
      before: nodes.some((node) => node.before), after: nodes.some((node) => node.after),
    };
  }
}

/** Edges between nodes as edges between boxes, each once. */
function lifted(edges, boxOf) {
  const found = new Map();
  for (const [from, to] of edges) {
    const [a, b] = [boxOf[from], boxOf[to]];
    if (a !== b) found.set(a * 1e6 + b, [a, b]);
  }
  return [...found.values()];
}

/**
 * Edges of one side that take the place of boxes which that side lacks: they are drawn through the empty places.
 * Returns a map from the edge (from * 1e6 + to) to the boxes on its way.
 */
function bypasses(boxes, edges) {
  const found = new Map();
  for (const side of ["before", "after"]) {
    const other = side === "before" ? "after" : "before";
    const next = new Map();
    for (const [a, b] of edges[other]) next.set(a, [...(next.get(a) || []), b]);
    const there = new Set(edges[other].map(([a, b]) => a * 1e6 + b));
    for (const [from, to] of edges[side]) {
      if (there.has(from * 1e6 + to)) continue;
      const way = wayThrough(from, to, next, (id) => !boxes[id][side]);
      if (way) found.set(from * 1e6 + to, way);
    }
  }
  return found;
}

function wayThrough(from, to, next, missing) {
  const came = new Map([[from, null]]);
  const waiting = [from];
  for (let at = waiting.shift(); at !== undefined && came.size < 200; at = waiting.shift()) {
    for (const id of next.get(at) || []) {
      if (id === to && at !== from) {
        const way = [];
        for (let back = at; back !== from; back = came.get(back)) way.unshift(back);
        return way;
      }
      if (missing(id) && !came.has(id)) { came.set(id, at); waiting.push(id); }
    }
  }
  return null;
}
